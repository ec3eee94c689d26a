//! Tells a GGUF file that can be read from one that cannot, and says what the latter looks like.

use crate::Result;
use crate::bail;

/// The version of the GGUF file `data`, 2 or 3; else an error that says what `data` is instead.
pub(super) fn version(data: &[u8]) -> Result<u32> {
    if data.starts_with(b"FUGG") {
        bail!(Unsupported, "a big-endian GGUF file; only little-endian ones are supported");
    }
    if !data.starts_with(b"GGUF") {
        match looks_like(data) {
            Some((what, hint)) => bail!(Format, "not a GGUF file: {what}{hint}"),
            None => bail!(Format, "not a GGUF file: it starts with {}", start(data)),
        }
    }
    let Some(&version) = data.get(4..).and_then(|rest| rest.first_chunk()) else {
        bail!(Format, "the file ends after {} bytes, within its header", data.len());
    };
    match u32::from_le_bytes(version) {
        version @ (2 | 3) => Ok(version),
        1 => bail!(Unsupported, "GGUF version 1 is not supported (2 and 3 are); convert the model again"),
        v if (1..=0xffff).contains(&v.swap_bytes()) => {
            bail!(
                Unsupported,
                "a big-endian GGUF file (version {}); only little-endian ones are supported",
                v.swap_bytes()
            )
        }
        v => bail!(Unsupported, "GGUF version {v} is not supported (2 and 3 are)"),
    }
}

/// What a file that is not GGUF looks like, and what to do about it.
fn looks_like(data: &[u8]) -> Option<(&'static str, &'static str)> {
    const CONVERT: &str = "; convert the model to GGUF first";
    const OLD: &str = "; convert the model again";
    if data.is_empty() {
        return Some(("it is empty", ""));
    }
    let starts: &[(&[u8], &str, &str)] = &[
        (b"lmgg", "a GGML file, from before GGUF", OLD),
        (b"fmgg", "a GGMF file, from before GGUF", OLD),
        (b"tjgg", "a GGJT file, from before GGUF", OLD),
        (b"algg", "a GGLA adapter, from before GGUF", OLD),
        (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for", "; run `git lfs pull`"),
        (b"PK\x03\x04", "a ZIP archive, perhaps a PyTorch checkpoint", CONVERT),
        (b"\x80\x02", "a Python pickle, perhaps a PyTorch checkpoint", CONVERT),
        (b"\x1f\x8b", "a gzip archive", "; unpack it first"),
        (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "; unpack it first"),
        (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "; unpack it first"),
        (b"\x89HDF", "an HDF5 file", CONVERT),
        (b"\x89PNG", "a PNG picture", ""),
        (b"\xff\xd8\xff", "a JPEG picture", ""),
        (b"RIFF", "a RIFF file: a WebP picture, a sound or a film", ""),
        (b"GIF8", "a GIF picture", ""),
        (b"%PDF", "a PDF document", ""),
    ];
    if let Some((_, what, hint)) = starts.iter().find(|(magic, ..)| data.starts_with(magic)) {
        return Some((what, hint));
    }
    if data.len() > 8 && data[8] == b'{' {
        let header = u64::from_le_bytes(*data.first_chunk().expect("more than 8 bytes"));
        if header < 1 << 32 {
            return Some(("a safetensors file", CONVERT));
        }
    }
    let text = data.trim_ascii_start();
    if text.first() == Some(&b'<') {
        return Some(("a web page, perhaps an error or a login in place of the download", ""));
    }
    if text.first() == Some(&b'{') {
        return Some(("JSON, perhaps an error in place of the download", ""));
    }
    if data.iter().take(4096).all(|&b| b == 0) {
        return Some(("it starts with zeros, like an unfinished download", ""));
    }
    None
}

/// The first bytes of `data`, as text where they are.
fn start(data: &[u8]) -> String {
    let bytes = &data[..data.len().min(4)];
    format!("\"{}\"", bytes.escape_ascii())
}
