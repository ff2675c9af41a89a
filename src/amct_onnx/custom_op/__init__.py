"""AMCT's import path of AMCT_SO, and the library of the calibration operators under AMCT's name: names only."""
