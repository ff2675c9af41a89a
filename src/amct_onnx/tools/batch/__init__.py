"""`batch`: many calls of `quantize` that one file asks for, of which a second call does only what is left."""
