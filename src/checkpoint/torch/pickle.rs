//! The pickles of `torch.save`, read as data.
//!
//! The machine below knows plain values, plain containers, and the handful of names that stand for tensors. A name that
//! it does not know is refused at once, with the name, before anything could be done with it. Nothing is called, nothing
//! is imported. Memory is bounded: the machine is a loop without recursion, no instruction makes more than one value, strings
//! are borrowed, and instructions, tensors and names are as many and as long as a checkpoint could need.
//! Opcodes: Python 3.13, `Lib/pickletools.py`; names: PyTorch 2.13, `torch/_weights_only_unpickler.py`.

use std::collections::HashMap;

use super::super::error::Kind;
use super::globals::{Global, global};
use crate::dtype::Dtype;

/// A tensor as the pickle describes it.
pub(super) struct View {
    /// Name; those of containers in containers are joined by dots.
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    /// Elements from one index to the next, per extent.
    pub(super) stride: Vec<u64>,
    /// The entry of the archive that holds the storage.
    pub(super) storage: String,
    /// Elements before the tensor in its storage.
    pub(super) offset: u64,
}

/// What is wrong, and in which tensor.
pub(super) struct Fault {
    pub(super) tensor: Option<String>,
    pub(super) kind: Kind,
}

/// Containers in containers, such as `{"model": {...}}`.
const DEPTH_MAX: usize = 4;

/// Most instructions of a pickle. `torch.save` needs about forty for a tensor.
const INSTRUCTIONS_MAX: usize = 1 << 21;

/// Most tensors of a pickle: the same one may stand in many places.
const TENSORS_MAX: usize = 1 << 16;

/// Longest name of a storage, in bytes; `torch.save` numbers them.
const KEY_BYTES_MAX: usize = 64;

/// Most values that are looked at for tensors: a container may stand in many others.
const VALUES_MAX: usize = 1 << 20;

/// Longest name of a tensor, in bytes: the same text may stand in many names.
const NAME_BYTES_MAX: usize = 1000;

/// A value on the stack. What is large lies in the machine's tables.
#[derive(Clone, Copy)]
enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Text(&'a str),
    /// Inert: bytes, floats, and what is made of them. Never a tensor.
    Opaque,
    Tuple(usize),
    List(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

#[derive(Clone, Copy)]
struct Storage<'a> {
    key: &'a str,
    dtype: Option<Dtype>,
}

struct Tensor<'a> {
    storage: Storage<'a>,
    dtype: Dtype,
    offset: u64,
    shape: Vec<u64>,
    stride: Vec<u64>,
}

/// The tensors of the pickle `text`, in its order.
pub(super) fn tensors(text: &[u8]) -> Result<Vec<View>, Fault> {
    let mut machine = Machine { rest: text, total: text.len(), ..Machine::default() };
    let end = machine.run().map_err(|kind| Fault { tensor: None, kind })?;
    let mut found = Found::default();
    machine.collect(end, "", 0, &mut found)?;
    Ok(found.views)
}

/// Tensors with their names, and how many values were looked at to find them.
#[derive(Default)]
struct Found {
    views: Vec<View>,
    values: usize,
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    total: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    tuples: Vec<Vec<Value<'a>>>,
    lists: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    storages: Vec<Storage<'a>>,
    tensors: Vec<Tensor<'a>>,
}

impl<'a> Machine<'a> {
    /// Runs to the end and gives the value there.
    fn run(&mut self) -> Result<Value<'a>, Kind> {
        for _ in 0..INSTRUCTIONS_MAX {
            let opcode = self.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            if self.plain(opcode)? || self.container(opcode)? || self.memory(opcode)? {
                continue;
            }
            match opcode {
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push_global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (module, name) else {
                        return Err(self.broken("a name that is no text"));
                    };
                    self.push_global(module, name)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.storages.push(storage);
                    self.stack.push(Value::Storage(self.storages.len() - 1));
                }
                b'R' | 0x81 => {
                    let (arguments, callee) = (self.pop()?, self.pop()?);
                    let made = self.make(callee, arguments)?;
                    self.stack.push(made);
                }
                // The state of an object: attributes of a dict, the bytes of a buffer. Nothing that a tensor needs.
                b'b' => {
                    self.pop()?;
                    match self.stack.last() {
                        Some(Value::Dict(_) | Value::Opaque) => {}
                        _ => return Err(self.broken("a state for what has none")),
                    }
                }
                _ => return Err(self.broken(&format!("the opcode {opcode:#04x}, which no checkpoint needs"))),
            }
        }
        Err(self.broken(&format!("more than {INSTRUCTIONS_MAX} instructions")))
    }

    /// Plain values. Says whether it knew the opcode.
    fn plain(&mut self, opcode: u8) -> Result<bool, Kind> {
        let value = match opcode {
            b'N' => Value::None,
            0x88 | 0x89 => Value::Bool,
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Value::Int(i64::from(self.byte()?)),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            0x8a => {
                let length = usize::from(self.byte()?);
                Value::Int(self.long(length)?)
            }
            b'G' => {
                self.take(8)?;
                Value::Opaque
            }
            b'X' => self.text_of(4)?,
            0x8c => self.text_of(1)?,
            0x8d => self.text_of(8)?,
            b'B' | b'T' => self.bytes_of(4)?,
            b'C' | b'U' => self.bytes_of(1)?,
            0x8e => self.bytes_of(8)?,
            0x80 => {
                self.byte()?;
                return Ok(true);
            }
            // A frame only tells how much may be read at once.
            0x95 => {
                self.take(8)?;
                return Ok(true);
            }
            _ => return Ok(false),
        };
        self.stack.push(value);
        Ok(true)
    }

    /// Containers. Says whether it knew the opcode.
    fn container(&mut self, opcode: u8) -> Result<bool, Kind> {
        match opcode {
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.push_tuple(Vec::new()),
            0x85..=0x87 => {
                let items = self.split_off(self.stack.len().checked_sub(usize::from(opcode - 0x84)))?;
                self.push_tuple(items);
            }
            b't' => {
                let items = self.above_mark()?;
                self.push_tuple(items);
            }
            b']' => {
                self.lists.push(Vec::new());
                self.stack.push(Value::List(self.lists.len() - 1));
            }
            b'}' => self.push_dict(),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.above_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.split_off(self.stack.len().checked_sub(2))?;
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set_items(&items)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The memo and the stack itself. Says whether it knew the opcode.
    fn memory(&mut self, opcode: u8) -> Result<bool, Kind> {
        let (key, store) = match opcode {
            b'q' => (u32::from(self.byte()?), true),
            b'r' => (u32::from_le_bytes(self.array()?), true),
            0x94 => (self.memo.len() as u32, true),
            b'h' => (u32::from(self.byte()?), false),
            b'j' => (u32::from_le_bytes(self.array()?), false),
            b'0' => return self.pop().map(|_| true),
            b'1' => return self.above_mark().map(|_| true),
            _ => return Ok(false),
        };
        if store {
            let Some(&value) = self.stack.last() else { return Err(self.broken("nothing to remember")) };
            self.memo.insert(key, value);
        } else {
            let Some(&value) = self.memo.get(&key) else { return Err(self.broken("what was never remembered")) };
            self.stack.push(value);
        }
        Ok(true)
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), Kind> {
        let Some(known) = global(module, name) else {
            return Err(Kind::ForbiddenGlobal { name: format!("{module}.{name}") });
        };
        self.stack.push(Value::Global(known));
        Ok(())
    }

    /// What a known name makes of its arguments.
    fn make(&mut self, callee: Value<'a>, arguments: Value<'a>) -> Result<Value<'a>, Kind> {
        let (Value::Global(global), Value::Tuple(arguments)) = (callee, arguments) else {
            return Err(self.broken("a call of what is no known name"));
        };
        // No name takes more; a tuple that is used again and again must not be copied as a whole each time.
        const ARGUMENTS_MAX: usize = 8;
        let arguments = Vec::from_iter(self.tuples[arguments].iter().copied().take(ARGUMENTS_MAX));
        match (global, arguments.as_slice()) {
            (Global::RebuildTensor, [storage, offset, shape, stride, ..]) => {
                self.tensor([*storage, *offset, *shape, *stride], None)
            }
            (Global::RebuildTensorOfDtype, [storage, offset, shape, stride, _, _, dtype, ..]) => {
                let Value::Global(Global::Dtype(dtype)) = *dtype else {
                    return Err(self.broken("a tensor without a dtype"));
                };
                self.tensor([*storage, *offset, *shape, *stride], Some(dtype))
            }
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(*tensor),
            (Global::OrderedDict, []) => {
                self.push_dict();
                self.pop()
            }
            (Global::Size, [tuple @ Value::Tuple(_)]) => Ok(*tuple),
            (Global::BytesIo | Global::Encode | Global::Bytes, _) => Ok(Value::Opaque),
            _ => Err(self.broken("a known name with arguments that it does not take")),
        }
    }

    /// `("storage", type, key, location, elements)`.
    fn storage(&self, id: Value<'a>) -> Result<Storage<'a>, Kind> {
        let Value::Tuple(id) = id else { return Err(self.broken("a storage without a description")) };
        match self.tuples[id].as_slice() {
            [_, _, Value::Text(key), ..] if key.len() > KEY_BYTES_MAX => {
                Err(self.broken(&format!("a storage whose name has more than {KEY_BYTES_MAX} bytes")))
            }
            [Value::Text("storage"), Value::Global(Global::Storage(dtype)), Value::Text(key), Value::Text(_), _] => {
                Ok(Storage { key, dtype: *dtype })
            }
            _ => Err(self.broken("a storage of an unknown kind")),
        }
    }

    fn tensor(&mut self, parts: [Value<'a>; 4], dtype: Option<Dtype>) -> Result<Value<'a>, Kind> {
        let [Value::Storage(storage), Value::Int(offset), Value::Tuple(shape), Value::Tuple(stride)] = parts else {
            return Err(self.broken("a tensor that is not made of a storage, an offset, a shape and strides"));
        };
        let storage = self.storages[storage];
        let Some(dtype) = dtype.or(storage.dtype) else { return Err(self.broken("a tensor without a dtype")) };
        let Ok(offset) = u64::try_from(offset) else { return Err(self.broken("a negative offset")) };
        let [extents, strides] = [shape, stride].map(|tuple| self.tuples[tuple].len());
        if extents != strides || extents > super::super::DIMENSIONS_MAX {
            return Err(self.broken(&format!("a tensor of {extents} extents and {strides} strides")));
        }
        let (shape, stride) = (self.numbers(shape)?, self.numbers(stride)?);
        self.tensors.push(Tensor { storage, dtype, offset, shape, stride });
        Ok(Value::Tensor(self.tensors.len() - 1))
    }

    fn numbers(&self, tuple: usize) -> Result<Vec<u64>, Kind> {
        let number = |value: &Value<'a>| match value {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        let numbers: Option<Vec<u64>> = self.tuples[tuple].iter().map(number).collect();
        numbers.ok_or_else(|| self.broken("an extent or a stride that is no size"))
    }

    /// Names the tensors under `value`; what is no tensor and holds none is passed over.
    fn collect(&self, value: Value<'a>, prefix: &str, depth: usize, found: &mut Found) -> Result<(), Fault> {
        let fault = |what: String| {
            let tensor = (!prefix.is_empty()).then(|| prefix.to_owned());
            Err(Fault { tensor, kind: Kind::Pickle { what, at: self.total as u64 } })
        };
        found.values += 1;
        match value {
            _ if found.values > VALUES_MAX => fault(format!("more than {VALUES_MAX} values")),
            _ if prefix.len() > NAME_BYTES_MAX => fault(format!("a name of more than {NAME_BYTES_MAX} bytes")),
            Value::Tensor(_) if found.views.len() == TENSORS_MAX => fault(format!("more than {TENSORS_MAX} tensors")),
            Value::Tensor(id) => {
                let Tensor { storage, dtype, offset, shape, stride } = &self.tensors[id];
                found.views.push(View {
                    name: prefix.to_owned(),
                    dtype: *dtype,
                    shape: shape.clone(),
                    stride: stride.clone(),
                    storage: storage.key.to_owned(),
                    offset: *offset,
                });
                Ok(())
            }
            Value::Dict(_) | Value::List(_) | Value::Tuple(_) if depth >= DEPTH_MAX => {
                fault(format!("containers more than {DEPTH_MAX} deep"))
            }
            Value::Dict(id) => self.dicts[id].iter().try_for_each(|(key, value)| {
                let name = match key {
                    Value::Text(key) if key.len() > NAME_BYTES_MAX => {
                        return fault(format!("a name of more than {NAME_BYTES_MAX} bytes"));
                    }
                    Value::Text(key) if prefix.is_empty() => (*key).to_owned(),
                    Value::Text(key) => format!("{prefix}.{key}"),
                    Value::Int(key) => format!("{prefix}.{key}"),
                    _ => return fault("a key that is neither a text nor a number".into()),
                };
                self.collect(*value, &name, depth + 1, found)
            }),
            Value::List(id) => self.collect_all(&self.lists[id], prefix, depth, found),
            Value::Tuple(id) => self.collect_all(&self.tuples[id], prefix, depth, found),
            _ => Ok(()),
        }
    }

    fn collect_all(&self, items: &[Value<'a>], prefix: &str, depth: usize, found: &mut Found) -> Result<(), Fault> {
        let mut numbered = items.iter().enumerate();
        numbered.try_for_each(|(index, item)| self.collect(*item, &format!("{prefix}.{index}"), depth + 1, found))
    }

    fn push_tuple(&mut self, items: Vec<Value<'a>>) {
        self.tuples.push(items);
        self.stack.push(Value::Tuple(self.tuples.len() - 1));
    }

    fn push_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Result<(), Kind> {
        let Some(&Value::List(list)) = self.stack.last() else { return Err(self.broken("items without a list")) };
        self.lists[list].extend(items);
        Ok(())
    }

    fn set_items(&mut self, items: &[Value<'a>]) -> Result<(), Kind> {
        let Some(&Value::Dict(dict)) = self.stack.last() else { return Err(self.broken("items without a dict")) };
        let (pairs, odd) = items.as_chunks::<2>();
        if !odd.is_empty() {
            return Err(self.broken("a key without a value"));
        }
        self.dicts[dict].extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    fn above_mark(&mut self) -> Result<Vec<Value<'a>>, Kind> {
        let mark = self.marks.pop();
        self.split_off(mark)
    }

    /// The stack from a height on; marks above it would be lost.
    fn split_off(&mut self, height: Option<usize>) -> Result<Vec<Value<'a>>, Kind> {
        match height.filter(|&height| height >= self.floor() && height <= self.stack.len()) {
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(self.broken("more values than the stack has")),
        }
    }

    fn pop(&mut self) -> Result<Value<'a>, Kind> {
        match self.stack.pop() {
            Some(value) if self.stack.len() >= self.floor() => Ok(value),
            _ => Err(self.broken("more values than the stack has")),
        }
    }

    /// Height of the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Kind> {
        let Some((taken, rest)) = self.rest.split_at_checked(bytes) else {
            return Err(self.broken("more bytes than there are"));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Kind> {
        Ok(self.take(N)?.try_into().expect("as many as were taken"))
    }

    fn byte(&mut self) -> Result<u8, Kind> {
        Ok(self.take(1)?[0])
    }

    /// Up to a line feed.
    fn line(&mut self) -> Result<&'a str, Kind> {
        let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') else {
            return Err(self.broken("a name without an end"));
        };
        let line = self.take(end)?;
        self.byte()?;
        std::str::from_utf8(line).map_err(|_| self.broken("a name that is not UTF-8"))
    }

    /// A length of so many bytes, and what it is the length of.
    fn counted(&mut self, length_bytes: usize) -> Result<&'a [u8], Kind> {
        let length = self.take(length_bytes)?.iter().rev().fold(0_u64, |n, &byte| n << 8 | u64::from(byte));
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn text_of(&mut self, length_bytes: usize) -> Result<Value<'a>, Kind> {
        let text = std::str::from_utf8(self.counted(length_bytes)?);
        text.map(Value::Text).map_err(|_| self.broken("a text that is not UTF-8"))
    }

    fn bytes_of(&mut self, length_bytes: usize) -> Result<Value<'a>, Kind> {
        self.counted(length_bytes).map(|_| Value::Opaque)
    }

    /// A number of `length` bytes in two's complement.
    fn long(&mut self, length: usize) -> Result<i64, Kind> {
        let bytes = self.take(length)?;
        if length > 8 {
            return Err(self.broken("a number of more than 64 bits"));
        }
        let negative = bytes.last().is_some_and(|&byte| byte & 0x80 != 0);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..length].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(all))
    }

    fn broken(&self, what: &str) -> Kind {
        Kind::Pickle { what: what.to_owned(), at: (self.total - self.rest.len()) as u64 }
    }
}
