//! The names that a pickle of `torch.save` may use: all there are. They stand for tensors and inert values; none of them is
//! ever called.

use crate::dtype::Dtype;

/// The names that may occur, by what they stand for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Global {
    RebuildTensor,
    RebuildTensorOfDtype,
    RebuildParameter,
    OrderedDict,
    Size,
    /// A buffer of bytes, as `_extra_state` is saved.
    BytesIo,
    /// How protocol 2 writes bytes, and no bytes.
    Encode,
    Bytes,
    /// A storage type; `None` for the untyped one.
    Storage(Option<Dtype>),
    Dtype(Dtype),
}

/// Storage types and dtypes of `torch`.
const DTYPES: [(&str, &str, Dtype); 18] = [
    ("DoubleStorage", "float64", Dtype::F64),
    ("FloatStorage", "float32", Dtype::F32),
    ("HalfStorage", "float16", Dtype::F16),
    ("BFloat16Storage", "bfloat16", Dtype::BF16),
    ("LongStorage", "int64", Dtype::I64),
    ("IntStorage", "int32", Dtype::I32),
    ("ShortStorage", "int16", Dtype::I16),
    ("CharStorage", "int8", Dtype::I8),
    ("ByteStorage", "uint8", Dtype::U8),
    ("BoolStorage", "bool", Dtype::BOOL),
    ("ComplexFloatStorage", "complex64", Dtype::C64),
    ("", "uint16", Dtype::U16),
    ("", "uint32", Dtype::U32),
    ("", "uint64", Dtype::U64),
    ("", "float8_e4m3fn", Dtype::F8_E4M3),
    ("", "float8_e5m2", Dtype::F8_E5M2),
    ("", "float8_e4m3fnuz", Dtype::F8_E4M3FNUZ),
    ("", "float8_e5m2fnuz", Dtype::F8_E5M2FNUZ),
];

/// What a name stands for; `None` for every name that no checkpoint needs.
pub(super) fn global(module: &str, name: &str) -> Option<Global> {
    let known = match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTensorOfDtype,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch", "Size") => Global::Size,
        ("_io" | "io", "BytesIO") => Global::BytesIo,
        ("_codecs", "encode") => Global::Encode,
        ("__builtin__" | "builtins", "bytes") => Global::Bytes,
        ("torch.storage", "UntypedStorage") => Global::Storage(None),
        ("torch", name) => {
            let (storage, _, dtype) = DTYPES.iter().find(|(storage, dtype, _)| name == *storage || name == *dtype)?;
            if name == *storage { Global::Storage(Some(*dtype)) } else { Global::Dtype(*dtype) }
        }
        _ => return None,
    };
    Some(known)
}
