//! Places that answers point at, as files: the flags of `mmq run`, and `mmq boxes`, which takes a saved answer.

use super::{printed, read_text, say};
use crate::gguf::replace;
use crate::media::annotate::{self, Mark};
use crate::media::preprocess::{CLIP_MEAN, CLIP_STD, Fit, Preprocess};
use crate::media::{self, DecodeOptions, Filter, Image, encode};
use crate::pipelines::{Engine, Region};
use crate::text::grounding::{Dialect, Grounding, Span};
use crate::{Error, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What `mmq run` does about places in pictures.
#[derive(clap::Args)]
pub struct BoxesArgs {
    /// Write the boxes of the answer: FORMAT is json, png or svg, and may be left out if FILE ends in it; - is standard output; may be repeated
    #[arg(long, num_args = 1..=2, value_names = ["FORMAT", "FILE"])]
    boxes: Vec<String>,

    /// How the answer writes boxes: qwen, minigpt_v2 or none [default: as the model does]
    #[arg(long, value_name = "NAME", value_parser = dialect)]
    box_dialect: Option<DialectArg>,

    /// Ask where PHRASE is; without --boxes the boxes go to standard output as JSON
    #[arg(long, value_name = "PHRASE", allow_hyphen_values = true, conflicts_with = "begin_answer")]
    pub find: Option<String>,
}

/// `none` is an answer, too.
#[derive(Clone, Copy, Debug)]
pub struct DialectArg(Option<Dialect>);

fn dialect(name: &str) -> Result<DialectArg, String> {
    match name {
        "none" => Ok(DialectArg(None)),
        _ => name.parse().map(|dialect| DialectArg(Some(dialect))).map_err(|e| format!("{e}, none")),
    }
}

impl BoxesArgs {
    /// Where the boxes go; checked before anything takes time.
    pub fn targets(&self, n_images: usize) -> Result<Vec<Target>> {
        let mut targets = targets(&self.boxes)?;
        if self.find.is_some() && targets.is_empty() {
            targets.push(Target { format: Format::Json, path: "-".into() });
        }
        if n_images == 0 && (self.find.is_some() || !targets.is_empty()) {
            let flag = if self.find.is_some() { "--find" } else { "--boxes" };
            bail!(Usage, "{flag} needs a picture: give one with --image");
        }
        Ok(targets)
    }

    /// How the answers of `engine` are read.
    pub fn dialect(&self, engine: &Engine) -> Result<Option<Dialect>> {
        let dialect = self.box_dialect.map_or_else(|| engine.dialect(), |DialectArg(dialect)| dialect);
        if dialect.is_none() && (self.find.is_some() || !self.boxes.is_empty()) {
            let known = Dialect::NAMES.map(|(name, _)| name).join(" or ");
            bail!(Usage, "{}: nothing says how it writes boxes: --box-dialect {known} does", engine.name());
        }
        Ok(dialect)
    }

    /// What to ask in a `chat`, or without one, and how the answer begins.
    pub fn question(&self, chat: bool, dialect: Option<Dialect>, prompt: Option<String>) -> (String, String) {
        let (Some(phrase), Some(dialect)) = (&self.find, dialect) else {
            return (prompt.unwrap_or_default(), String::new());
        };
        let (question, begun) = dialect.find(phrase);
        // A model that only goes on from text is asked by the beginning of the answer alone.
        let question = if chat || begun.is_empty() { question } else { String::new() };
        (prompt.unwrap_or(question), begun)
    }
}

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Png,
    Svg,
}

impl Format {
    fn named(name: &str) -> Option<Format> {
        let formats = [("json", Format::Json), ("png", Format::Png), ("svg", Format::Svg)];
        formats.into_iter().find_map(|(n, format)| name.eq_ignore_ascii_case(n).then_some(format))
    }
}

/// A file to write.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    format: Format,
    path: PathBuf,
}

/// `[FORMAT] FILE` one after the other.
fn targets(given: &[String]) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    let mut given = given.iter();
    while let Some(word) = given.next() {
        let target = match Format::named(word) {
            Some(format) => match given.next().filter(|file| Format::named(file).is_none()) {
                Some(file) => Target { format, path: file.into() },
                None => bail!(Usage, "--boxes {word}: the file is missing: --boxes {word} FILE"),
            },
            None => match Path::new(word).extension().and_then(|e| e.to_str()).and_then(Format::named) {
                Some(format) => Target { format, path: word.into() },
                None => {
                    bail!(Usage, "--boxes {word}: expected a name in .json, .png or .svg, or one of these before it")
                }
            },
        };
        let folder = target.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            bail!(Io, "--boxes {}: there is no folder {}", target.path.display(), folder.display());
        }
        targets.push(target);
    }
    if targets.iter().filter(|target| target.is_stdout()).count() > 1 {
        bail!(Usage, "--boxes -: standard output holds one file only");
    }
    Ok(targets)
}

impl Target {
    /// Whether it takes the place of the answer.
    pub fn is_stdout(&self) -> bool {
        self.path.as_os_str() == "-"
    }

    /// Whether it shows the picture.
    pub fn wants_picture(&self) -> bool {
        self.format != Format::Json
    }

    /// Writes `regions`, which are all of picture `image`.
    pub fn write(&self, regions: &[Region], image: Option<&Image>) -> Result<()> {
        let marks: Vec<Mark<'_>> =
            regions.iter().map(|region| Mark { label: &region.label, points: &region.points }).collect();
        let bytes = match (self.format, image) {
            (Format::Json, _) => json(regions).into_bytes(),
            (Format::Png, Some(image)) => {
                let mut image = image.clone();
                annotate::draw(&mut image, &marks);
                encode::png(&image)?
            }
            (Format::Svg, Some(image)) => annotate::svg(image, &marks)?.into_bytes(),
            (_, None) => bail!(Usage, "{}: there is no picture to draw on", self.path.display()),
        };
        if self.is_stdout() {
            let mut stdout = std::io::stdout();
            return printed(stdout.write_all(&bytes).and_then(|()| stdout.flush()));
        }
        replace(&self.path, |out| out.write_all(&bytes).map_err(|e| Error::io(&self.path, &e)))
    }
}

/// Writes all `targets` and says what is not as the reader might expect.
pub fn write_all(targets: &[Target], regions: &[Region], image: Option<&Image>, note: &dyn Fn(&str)) -> Result<()> {
    for target in targets {
        target.write(regions, image)?;
    }
    let n_missing = regions.iter().filter(|region| !annotate::can_write(&region.label)).count();
    if n_missing > 0 && targets.iter().any(|target| target.format == Format::Png) {
        note(&format!(
            "{n_missing} labels have characters that the built-in font lacks: the PNG shows numbers in the order of the \
             JSON; an SVG shows the text"
        ));
    }
    Ok(())
}

/// An array with a line for each region.
fn json(regions: &[Region]) -> String {
    let lines: Vec<String> = regions.iter().map(|region| format!("\n  {}", region.json())).collect();
    match lines.is_empty() {
        true => "[]\n".to_owned(),
        false => format!("[{}\n]\n", lines.join(",")),
    }
}

/// Draws the boxes of a saved answer on its picture, or writes them as JSON; needs no model.
#[derive(clap::Args)]
pub struct Args {
    /// Picture that the answer is about: a path, - for standard input, or a data: URL
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    image: String,

    /// The answer with its tags; - for standard input
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    file: PathBuf,

    /// Write the boxes: FORMAT is json, png or svg, and may be left out if FILE ends in it; may be repeated [default: json -]
    #[arg(short = 'o', long, num_args = 1..=2, value_names = ["FORMAT", "FILE"])]
    boxes: Vec<String>,

    /// How the answer writes boxes: qwen or minigpt_v2 [default: as its tags say]
    #[arg(long, value_name = "NAME")]
    box_dialect: Option<Dialect>,

    /// How the model fitted the picture: squash, pad, crop or anyres
    #[arg(long, value_name = "RULE", default_value = "squash", value_parser = ["squash", "pad", "crop", "anyres"], hide_possible_values = true)]
    image_fit: String,

    /// Side of the picture that the model saw, in pixels; matters for crop alone
    #[arg(long, value_name = "N", default_value_t = 448, value_parser = clap::value_parser!(u32).range(1..=4096))]
    image_size: u32,
}

/// Runs `mmq boxes`.
pub fn run(args: &Args) -> Result<()> {
    if args.image == "-" && args.file.as_os_str() == "-" {
        bail!(Usage, "--image - and -f -: standard input cannot be both");
    }
    let mut targets = targets(&args.boxes)?;
    if targets.is_empty() {
        targets.push(Target { format: Format::Json, path: "-".into() });
    }
    let image = media::load(&args.image, &DecodeOptions::default())?;
    let text = read_text(&args.file)?;
    let image_size = args.image_size as usize;
    let fit = Fit::named(&args.image_fit, CLIP_MEAN, image_size)?;
    let preprocess = Preprocess { image_size, mean: CLIP_MEAN, std: CLIP_STD, fit, filter: Filter::Bicubic };
    let view = preprocess.view(image.width, image.height);
    let mut regions = Vec::new();
    if let Some(dialect) = args.box_dialect.or_else(|| Dialect::of_text(&text)) {
        let mut grounding = Grounding::new(dialect);
        let mut spans = grounding.push(&text);
        spans.extend(grounding.finish());
        regions.extend(spans.into_iter().filter_map(|span| match span {
            Span::Place(place) => Some(Region::new(place, 0, &view)),
            Span::Text(_) => None,
        }));
    }
    let note = |text: &str| say(&format!("note: {text}"));
    if regions.is_empty() {
        note("there are no boxes in the answer");
    }
    write_all(&targets, &regions, Some(&image), &note)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Vec<Target>> {
        targets(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn formats_are_named_or_seen_in_the_file() {
        let target = |format, path: &str| Target { format, path: path.into() };
        let all = [target(Format::Json, "a"), target(Format::Png, "b.PNG"), target(Format::Svg, "-")];
        assert_eq!(parsed(&["json", "a", "b.PNG", "svg", "-"]).unwrap(), all);
        assert_eq!(parsed(&["json", "b.png"]).unwrap(), [target(Format::Json, "b.png")]);
        for (words, says) in [
            (&["png"][..], "the file is missing"),
            (&["png", "json", "x"], "the file is missing"),
            (&["a.gif"], ".json, .png or .svg"),
            (&["no/such/a.png"], "there is no folder"),
            (&["json", "-", "svg", "-"], "one file only"),
        ] {
            assert!(parsed(words).unwrap_err().to_string().contains(says), "{words:?}");
        }
    }
}
