//! Describes a picture with the built-in model: `cargo run --release --example describe -- models/nano/sample.png`.

use mmq::media::{self, DecodeOptions};
use mmq::pipelines::{Cancel, Engine, EngineOptions, Generation, Session, SessionOptions};
use mmq::text::template::{IMAGE_MARKER, Message, Role};
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;

fn main() -> mmq::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "models/nano/sample.png".into());
    let engine = Arc::new(Engine::built_in(&EngineOptions::default())?);
    let picture = engine.encode_image(&media::load(&path, &DecodeOptions::default())?, None, None)?;
    let question = Message { role: Role::User, content: format!("{IMAGE_MARKER}Describe the picture.") };

    let mut session = Session::new(&engine, &SessionOptions::default(), &Cancel::default())?;
    session.sync(&engine.chat_prompt(&[question], &[picture])?, None)?;
    session.generate(&Generation::default(), &mut |text| {
        print!("{text}");
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    println!();
    Ok(())
}
