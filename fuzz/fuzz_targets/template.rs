//! Any text as a chat template: compiled and run within its limits or refused, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmq::text::template::{ChatTemplate, IMAGE_MARKER, Message, Role};

/// Lets the engine's own panics pass, which the code under test catches; any other ends the process.
fn look_past_engine() {
    let fatal = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.location().is_some_and(|at| at.file().contains("minijinja")) {
            fatal(info);
        }
    }));
}

fuzz_target!(init: look_past_engine(), |text: &str| {
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
