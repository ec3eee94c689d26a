//! llama.cpp's short flags of several letters (`-ngl`, `-ctk`), which are no flags to clap: they are spelled out first.

use std::ffi::OsString;

const SHORT: &[(&str, &str)] = &[
    ("-mm", "--mmproj"),
    ("-sys", "--system-prompt"),
    ("-sysf", "--system-prompt-file"),
    ("-ub", "--ubatch-size"),
    ("-tb", "--threads-batch"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-ngl", "--gpu-layers"),
    ("-fa", "--flash-attn"),
    ("-lm", "--load-mode"),
    ("-cnv", "--conversation"),
    ("-no-cnv", "--no-conversation"),
    ("-st", "--single-turn"),
    ("-sp", "--special"),
    ("-hf", "--hf-repo"),
    ("-hfr", "--hf-repo"),
];

/// The arguments with every such flag in its long spelling; what follows `--` stays as it is.
pub fn long_spelling(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut verbatim = false;
    arguments
        .map(|argument| {
            verbatim |= argument == "--";
            let long = SHORT.iter().find(|(short, _)| argument == *short);
            match long {
                Some((_, long)) if !verbatim => OsString::from(long),
                _ => argument,
            }
        })
        .collect()
}

/// The escapes `\n`, `\t`, `\r`, `\'`, `\"`, `\\` and `\xHH` in a prompt; anything else stays.
pub fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (c, n) = match rest.as_bytes().first() {
            Some(b'n') => ('\n', 1),
            Some(b't') => ('\t', 1),
            Some(b'r') => ('\r', 1),
            Some(b'\'') => ('\'', 1),
            Some(b'"') => ('"', 1),
            Some(b'\\') => ('\\', 1),
            Some(b'x') => match rest.get(1..3).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => (char::from(byte), 3),
                None => ('\\', 0),
            },
            _ => ('\\', 0),
        };
        out.push(c);
        rest = &rest[n..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_flags_become_long_ones() {
        let spell = |args: &[&str]| long_spelling(args.iter().map(OsString::from));
        assert_eq!(spell(&["mmq", "-ngl", "99", "-m", "x"]), ["mmq", "--gpu-layers", "99", "-m", "x"]);
        assert_eq!(spell(&["mmq", "--", "-ngl"]), ["mmq", "--", "-ngl"]);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(r#"a\nb\t\\n\"\x41\q\"#), "a\nb\t\\n\"A\\q\\");
        assert_eq!(unescape(r"\x4"), r"\x4");
    }
}
