"""What Ascend chips run on int8 through ATC (spec section 5)."""

from __future__ import annotations

from amct_onnx.core.target import OpRule, Target

ASCEND = Target(
    name="ascend",
    rules={
        "Conv": OpRule(weight_ranks=frozenset((3, 4, 5)), channel_wise=True, symmetric_ranks=frozenset((5,))),
        "ConvTranspose": OpRule(weight_ranks=frozenset((4,)), channel_wise=True),
        "Gemm": OpRule(weight_ranks=frozenset((2,))),
        "MatMul": OpRule(weight_ranks=frozenset((2, 3))),
        "AveragePool": OpRule(),
        "LSTM": OpRule(weight_ranks=frozenset((3,)), channel_wise=True),
        "GRU": OpRule(weight_ranks=frozenset((3,)), channel_wise=True),
    },
)
