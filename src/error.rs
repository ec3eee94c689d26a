//! The one error type: what went wrong, in words that name the file, tensor, key or flag, the expected and the actual.

use std::fmt;
use std::path::Path;

/// What sort of failure it is; decides the exit code, and later the C and HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense: a flag, an argument, a count.
    Usage,
    /// A file could not be opened, read or written.
    Io,
    /// A file is damaged, hostile or not of its format.
    Format,
    /// Well-formed, but mmq cannot run it.
    Unsupported,
    /// Two parts do not fit each other: text model and mmproj, prompt and pictures.
    Mismatch,
    /// The context is full, or the input does not fit in it.
    ContextFull,
    /// Too little memory for what was asked.
    Memory,
    /// The caller stopped it.
    Cancelled,
    /// A check that the user asked for did not hold (`mmq verify`).
    Failed,
}

/// An error with its kind and a message for people.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// `Result` with mmq's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }

    /// Failure to read or write `path`.
    pub fn io(path: impl AsRef<Path>, error: &std::io::Error) -> Error {
        Error::new(ErrorKind::Io, format!("{}: {error}", path.as_ref().display()))
    }

    /// The caller stopped it.
    pub(crate) fn stopped() -> Error {
        Error::new(ErrorKind::Cancelled, "stopped")
    }

    /// The same error with `context` and a colon in front of its message.
    pub fn context(self, context: impl fmt::Display) -> Error {
        Error { kind: self.kind, message: format!("{context}: {}", self.message) }
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// `Cancelled` if the work that this thread does is [stopped](mmq_kernels::stopped).
pub(crate) fn unless_stopped() -> Result<()> {
    if mmq_kernels::stopped() { Err(Error::stopped()) } else { Ok(()) }
}

/// `Err(Error)` from a kind and a format string: `bail!(Format, "{file}: …")`.
macro_rules! bail {
    ($kind:ident, $($arg:tt)*) => {
        return Err($crate::Error::new($crate::ErrorKind::$kind, format!($($arg)*)))
    };
}
pub(crate) use bail;
