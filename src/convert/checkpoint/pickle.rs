//! The part of Python's pickle language that describes a state dictionary of PyTorch, run without running any code: a
//! pickle names functions to call, and here only the few that rebuild tensors have a meaning. Everything else is refused
//! by its name.
//!
//! Values are places in tables, so that neither a cycle nor deep nesting can do harm; time and memory grow with the bytes
//! read. The opcodes: CPython's `Lib/pickletools.py`. The functions: `torch/_utils.py` and `torch/serialization.py`.

use super::Element;
use crate::{Result, bail};
use std::collections::HashMap;

/// The longest pickle that is read: a tensor takes some 200 bytes.
const MAX_BYTES: usize = 16 << 20;

/// A value, or its place in a table of [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'a str),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// What a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

/// The bytes behind tensors: an entry of the archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    pub element: Element,
    pub key: &'a str,
    /// Elements.
    pub len: usize,
}

/// A view of a storage.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Place in [`Pickle::storages`].
    pub storage: usize,
    /// All three in elements.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// What a pickle describes.
pub(super) struct Pickle<'a> {
    /// What it is as a whole.
    pub value: Value<'a>,
    /// Tuples and lists.
    lists: Vec<Vec<Value<'a>>>,
    pub dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub storages: Vec<Storage<'a>>,
    pub tensors: Vec<View>,
}

/// Reads the pickle `bytes`; `name` stands for it in messages.
pub(super) fn read<'a>(name: &str, bytes: &'a [u8]) -> Result<Pickle<'a>> {
    if bytes.len() > MAX_BYTES {
        bail!(Unsupported, "{name}: a pickle of {} bytes, more than {MAX_BYTES}", bytes.len());
    }
    let mut machine = Machine {
        name,
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        pickle: Pickle {
            value: Value::None,
            lists: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        },
    };
    while !machine.step()? {}
    Ok(machine.pickle)
}

struct Machine<'a, 'n> {
    name: &'n str,
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    pickle: Pickle<'a>,
}

impl<'a> Machine<'a, '_> {
    /// Runs one opcode; true when it is the last.
    fn step(&mut self) -> Result<bool> {
        let start = self.at;
        let opcode = self.take::<1>()?[0];
        match opcode {
            // PROTO, FRAME
            0x80 => _ = self.take::<1>()?,
            0x95 => _ = self.take::<8>()?,
            b'.' => {
                self.pickle.value = self.pop()?;
                return Ok(true);
            }
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' => {
                let [n] = self.take()?;
                self.stack.push(Value::Int(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(n.into()));
            }
            b'J' => {
                let n = i32::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(n.into()));
            }
            0x8A => {
                let [n] = self.take()?;
                let digits = self.slice(n.into())?;
                let negative = digits.last().is_some_and(|b| b & 0x80 != 0);
                let mut number = [if negative { 0xFF } else { 0 }; 8];
                match number.get_mut(..digits.len()) {
                    Some(low) => low.copy_from_slice(digits),
                    None => bail!(Unsupported, "{}: byte {start}: a number of {n} bytes", self.name),
                }
                self.stack.push(Value::Int(i64::from_le_bytes(number)));
            }
            b'G' => {
                let number = f64::from_be_bytes(self.take()?);
                self.stack.push(Value::Float(number));
            }
            b'X' => {
                let n = u32::from_le_bytes(self.take()?);
                self.text(n as usize)?;
            }
            0x8C => {
                let [n] = self.take()?;
                self.text(n.into())?;
            }
            // Memo: BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => {
                let [i] = self.take()?;
                self.keep(i.into())?;
            }
            b'r' => {
                let i = u32::from_le_bytes(self.take()?);
                self.keep(i)?;
            }
            0x94 => self.keep(self.memo.len() as u32)?,
            b'h' => {
                let [i] = self.take()?;
                self.recall(i.into())?;
            }
            b'j' => {
                let i = u32::from_le_bytes(self.take()?);
                self.recall(i)?;
            }
            b')' => self.tuple(Vec::new()),
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(n).filter(|from| *from >= self.floor());
                let Some(from) = from else { return self.underflow() };
                let items = self.stack.split_off(from);
                self.tuple(items);
            }
            b't' => {
                let items = self.since_mark()?;
                self.tuple(items);
            }
            b']' => {
                self.stack.push(Value::List(self.pickle.lists.len()));
                self.pickle.lists.push(Vec::new());
            }
            b'l' => {
                let items = self.since_mark()?;
                self.stack.push(Value::List(self.pickle.lists.len()));
                self.pickle.lists.push(items);
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            b'}' => {
                let dict = self.dict();
                self.stack.push(dict);
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(items)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Str(module), Value::Str(name)) = (module, name) else {
                    bail!(Format, "{}: byte {start}: the name of a function is no text", self.name);
                };
                self.global(module, name)?;
            }
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            // BUILD: the attributes of a state dictionary (its `_metadata`) hold versions of modules, nothing else.
            b'b' => {
                self.pop()?;
                match self.stack.last() {
                    Some(Value::Dict(_)) if self.stack.len() > self.floor() => {}
                    _ => bail!(Unsupported, "{}: byte {start}: gives attributes to what is no dictionary", self.name),
                }
            }
            other => bail!(
                Unsupported,
                "{}: byte {start}: opcode 0x{other:02x} has no place in a state dictionary, and is not run",
                self.name
            ),
        }
        Ok(false)
    }

    fn slice(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some(bytes) = self.bytes.get(self.at..).and_then(|rest| rest.get(..n)) else {
            bail!(Format, "{}: ends in the middle, at byte {}", self.name, self.bytes.len());
        };
        self.at += n;
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(*self.slice(N)?.first_chunk().expect("the slice has this length"))
    }

    /// A line of text, without its end.
    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().take(1000).position(|b| *b == b'\n');
        let line = n.and_then(|n| std::str::from_utf8(&rest[..n]).ok());
        let Some(line) = line else { bail!(Format, "{}: byte {}: expected a line of text", self.name, self.at) };
        self.at += line.len() + 1;
        Ok(line)
    }

    fn text(&mut self, n: usize) -> Result<()> {
        let at = self.at;
        match std::str::from_utf8(self.slice(n)?) {
            Ok(text) => self.stack.push(Value::Str(text)),
            Err(_) => bail!(Format, "{}: byte {at}: a text is not UTF-8", self.name),
        }
        Ok(())
    }

    /// The lowest height of the stack that the code since the last mark may take from.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn underflow<T>(&self) -> Result<T> {
        bail!(Format, "{}: byte {}: takes a value where there is none", self.name, self.at)
    }

    fn pop(&mut self) -> Result<Value<'a>> {
        if self.stack.len() <= self.floor() {
            return self.underflow();
        }
        Ok(self.stack.pop().expect("it is higher than its floor"))
    }

    fn since_mark(&mut self) -> Result<Vec<Value<'a>>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => bail!(Format, "{}: byte {}: there is no mark", self.name, self.at),
        }
    }

    fn keep(&mut self, i: u32) -> Result<()> {
        if self.stack.len() <= self.floor() {
            return self.underflow();
        }
        self.memo.extend(self.stack.last().map(|value| (i, *value)));
        Ok(())
    }

    fn recall(&mut self, i: u32) -> Result<()> {
        match self.memo.get(&i) {
            Some(value) => self.stack.push(*value),
            None => bail!(Format, "{}: byte {}: nothing was kept as number {i}", self.name, self.at),
        }
        Ok(())
    }

    fn tuple(&mut self, items: Vec<Value<'a>>) {
        self.stack.push(Value::Tuple(self.pickle.lists.len()));
        self.pickle.lists.push(items);
    }

    fn dict(&mut self) -> Value<'a> {
        self.pickle.dicts.push(Vec::new());
        Value::Dict(self.pickle.dicts.len() - 1)
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Result<()> {
        match self.stack.last() {
            Some(Value::List(i)) => self.pickle.lists[*i].extend(items),
            _ => bail!(Format, "{}: byte {}: appends to what is no list", self.name, self.at),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Value<'a>>) -> Result<()> {
        let (pairs, rest) = items.as_chunks::<2>();
        match self.stack.last() {
            Some(Value::Dict(i)) if rest.is_empty() => {
                self.pickle.dicts[*i].extend(pairs.iter().map(|[key, value]| (*key, *value)));
            }
            _ => bail!(Format, "{}: byte {}: sets entries of what is no dictionary", self.name, self.at),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let global = match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", storage) => match storage_of(storage) {
                Some(element) => Global::Storage(element),
                None => return self.refuse(module, name),
            },
            _ => return self.refuse(module, name),
        };
        self.stack.push(Value::Global(global));
        Ok(())
    }

    fn refuse(&self, module: &str, name: &str) -> Result<()> {
        bail!(
            Unsupported,
            "{}: names {module}.{name}, which is no part of a plain state dictionary: mmq runs no code from files. \
             Save the weights as safetensors instead",
            self.name
        )
    }

    /// The items of a tuple.
    fn items(&self, value: Value<'a>) -> Result<&[Value<'a>]> {
        match value {
            Value::Tuple(i) => Ok(&self.pickle.lists[i]),
            _ => bail!(Format, "{}: byte {}: expected a tuple, got {value:?}", self.name, self.at),
        }
    }

    /// `('storage', type, key, device, number of elements)` in the place of an object that is stored elsewhere.
    fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = match *self.items(id)? {
            [Value::Str("storage"), Value::Global(Global::Storage(element)), Value::Str(key), _, Value::Int(len)] => {
                usize::try_from(len).ok().map(|len| Storage { element, key, len })
            }
            _ => None,
        };
        let Some(storage) = storage else {
            bail!(Format, "{}: byte {}: is no description of a storage", self.name, self.at);
        };
        self.stack.push(Value::Storage(self.pickle.storages.len()));
        self.pickle.storages.push(storage);
        Ok(())
    }

    /// Calls one of the few functions that have a meaning.
    fn call(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let at = self.at;
        let arguments = self.items(arguments)?;
        let result = match (function, arguments) {
            (Value::Global(Global::OrderedDict), []) => self.dict(),
            (Value::Global(Global::RebuildParameter), [tensor @ Value::Tensor(_), ..]) => *tensor,
            (
                Value::Global(Global::RebuildTensor),
                &[Value::Storage(storage), Value::Int(offset), shape, strides, ..],
            ) => {
                let numbers = |value| -> Result<Option<Vec<usize>>> {
                    let number = |value: &Value| match value {
                        Value::Int(n) => usize::try_from(*n).ok(),
                        _ => None,
                    };
                    Ok(self.items(value)?.iter().map(number).collect())
                };
                let (shape, strides) = (numbers(shape)?, numbers(strides)?);
                let (Ok(offset), Some(shape), Some(strides)) = (usize::try_from(offset), shape, strides) else {
                    bail!(Format, "{}: byte {at}: the shape of a tensor is not made of numbers", self.name);
                };
                self.pickle.tensors.push(View { storage, offset, shape, strides });
                Value::Tensor(self.pickle.tensors.len() - 1)
            }
            _ => bail!(Unsupported, "{}: byte {at}: calls {function:?} in a way that is not known", self.name),
        };
        self.stack.push(result);
        Ok(())
    }
}

fn storage_of(name: &str) -> Option<Element> {
    Some(match name.strip_suffix("Storage")? {
        "Double" => Element::F64,
        "Float" => Element::F32,
        "Half" => Element::F16,
        "BFloat16" => Element::BF16,
        "Long" => Element::Other("I64", 8),
        "Int" => Element::Other("I32", 4),
        "Short" => Element::Other("I16", 2),
        "Char" => Element::Other("I8", 1),
        "Byte" => Element::Other("U8", 1),
        "Bool" => Element::Other("BOOL", 1),
        _ => return None,
    })
}
