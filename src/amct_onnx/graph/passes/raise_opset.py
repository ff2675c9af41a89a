"""TEMPORARY"""

import onnx_ir as ir


def raise_opset(model, version):
    import onnx.version_converter as v

    new = ir.from_proto(v.convert_version(ir.to_proto(model), version))
    model.graph = new.graph
    return model
