"""The operators that the appliance runs, in one table, and why the others are not in it.

Rules only. `model_store.graph` holds every graph to this table before any runtime loads it.
"""

from collections.abc import Mapping
from typing import Final

ALLOWED_OPERATORS: Final = frozenset(
    {
        # convolution and pooling
        "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "GlobalAveragePool",
        "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool", "MaxUnpool",
        # normalisation
        "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization",
        "LpNormalization", "MeanVarianceNormalization", "RMSNormalization",
        # activation
        "Celu", "Clip", "Dropout", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "LeakyRelu",
        "LogSoftmax", "Mish", "PRelu", "Relu", "Selu", "Shrink", "Sigmoid", "Softmax", "Softplus", "Softsign",
        "Swish", "Tanh", "ThresholdedRelu",
        # arithmetic, element by element
        "Abs", "Acos", "Acosh", "Add", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Div", "Exp",
        "Floor", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Pow", "Reciprocal", "Round", "Sign",
        "Sin", "Sinh", "Sqrt", "Sub", "Sum", "Tan",
        # comparison and logic
        "And", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Equal", "Greater",
        "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Where", "Xor",
        # matrices and attention
        "Attention", "Einsum", "Gemm", "MatMul", "MatMulInteger", "RotaryEmbedding",
        # reduction and order
        "ArgMax", "ArgMin", "CumSum", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
        "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "TopK",
        # shape and place
        "AffineGrid", "Cast", "CastLike", "CenterCropPad", "Col2Im", "Concat", "Constant", "ConstantOfShape",
        "DepthToSpace", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND", "GridSample",
        "Identity", "OneHot", "Pad", "Range", "Reshape", "Resize", "ReverseSequence", "ScatterElements",
        "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
        "Trilu", "Unsqueeze",
        # recurrent, with a fixed number of steps
        "GRU", "LSTM", "RNN",
        # detection
        "MaxRoiPool", "NonMaxSuppression", "NonZero", "RoiAlign",
        # quantised
        "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QuantizeLinear",
    }
)  # fmt: skip
"""Operators of domain ai.onnx: deterministic, from tensors to tensors. No other domain is allowed."""

EXCLUDED_OPERATORS: Final[Mapping[str, frozenset[str]]] = {
    "control flow: it carries graphs of its own and may never end": frozenset(
        {"If", "Loop", "Scan", "SequenceMap"}
    ),
    "random: a second run must give the same result": frozenset(
        {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
    ),
    "a sequence or an optional: only tensors are passed": frozenset(
        {
            "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt",
            "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
            "SplitToSequence",
        }
    ),
    "text: no model of images needs it": frozenset(
        {"RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"}
    ),
    "a decoder of compressed files: `dicom.decode` alone decodes": frozenset({"ImageDecoder"}),
    "training: the appliance's graphs only infer": frozenset(
        {"NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"}
    ),
    "state kept between steps: one study must not reach into the next": frozenset(
        {"CausalConvWithState", "LinearAttention", "TensorScatter"}
    ),
    "retired by ONNX: its successor is allowed": frozenset({"Scatter", "Upsample"}),
}  # fmt: skip
"""Why an operator is not in the table; what is in neither is new or has not been asked for."""


def why_not(operator: str) -> str:
    """The reason why `operator` is not in the table, in words for the model's maker."""
    if ":" in operator:
        return "only the domain ai.onnx is"
    for reason, names in EXCLUDED_OPERATORS.items():
        if operator in names:
            return reason
    return "it is not in the appliance's table of operators"
