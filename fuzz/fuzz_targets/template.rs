//! Any text as a chat template: compiled and run within its limits or refused, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmq::text::template::{ChatTemplate, IMAGE_MARKER, Message, Role};

fuzz_target!(|text: &str| {
    let Ok(template) = ChatTemplate::new(text) else { return };
    let message = |role, content: &str| Message { role, content: content.into() };
    let chat = [
        message(Role::System, "Be brief."),
        message(Role::User, &format!("{IMAGE_MARKER}\nWhat is {{{{ this }}}}?")),
        message(Role::Assistant, "A <b>cat</b>."),
        message(Role::User, "Größer als \"das\"?"),
    ];
    for n in 0..=chat.len() {
        let _ = template.render(&chat[..n], n % 2 == 0, "<s>", "</s>");
    }
});
