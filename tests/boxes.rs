//! Places that answers point at: from the text to pixels of the picture, and to the files that show them.
#![cfg(feature = "cli")]

use mmq::media::preprocess::{CLIP_MEAN, CLIP_STD};
use mmq::media::{self, DecodeOptions, Filter, Fit, Image, Preprocess, encode};
use mmq::pipelines::{Cancel, Engine, EngineOptions, Event, Generation, Region, Session, SessionOptions};
use mmq::text::Dialect;
use mmq::text::template::IMAGE_MARKER;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// As it is shown, and the red part of it: columns 300 to 600, rows 40 to 280.
const SIZE: (usize, usize) = (1200, 400);
const RED: [usize; 4] = [300, 40, 600, 280];
/// The same in Qwen-VL's thousandths.
const ANSWER: &str = "There is a <ref>red & white \"sign\"</ref><box>(250,100),(500,700)</box> here.";
const LABEL: &str = "red & white \"sign\"";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn crc(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

/// A PNG file of the picture turned by a quarter, whose EXIF says so (orientation 6): 400 wide and 1200 high as stored.
fn rotated() -> Vec<u8> {
    let (width, height) = SIZE;
    let mut stored = Image { width: height, height: width, rgb: vec![0xc8; width * height * 3] };
    for y in RED[1]..RED[3] {
        for x in RED[0]..RED[2] {
            // Shown at (x, y) is what is stored at (y, width - 1 - x).
            let at = ((width - 1 - x) * height + y) * 3;
            stored.rgb[at..at + 3].copy_from_slice(&[200, 0, 0]);
        }
    }
    let png = encode::png(&stored).unwrap();
    let mut chunk = b"eXIfII*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    chunk.splice(..0, (chunk.len() as u32 - 4).to_be_bytes());
    chunk.extend(crc(&chunk[4..]).to_be_bytes());
    // Behind the signature and IHDR.
    [&png[..33], &chunk, &png[33..]].concat()
}

/// A folder with the picture and the answer.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("picture.png"), rotated()).unwrap();
    std::fs::write(folder.path().join("answer.txt"), ANSWER).unwrap();
    folder
}

fn mmq(folder: &Path, args: &[&str]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mmq")).args(args).current_dir(folder).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    (out.into_owned(), err.into_owned())
}

fn load(path: &Path) -> Image {
    media::load(path.to_str().unwrap(), &DecodeOptions::default()).unwrap()
}

fn pixel(image: &Image, x: usize, y: usize) -> [u8; 3] {
    let at = (y * image.width + x) * 3;
    [image.rgb[at], image.rgb[at + 1], image.rgb[at + 2]]
}

#[test]
fn a_saved_answer_becomes_json_and_pictures() {
    let folder = folder();
    let line = [
        "boxes",
        "--image",
        "picture.png",
        "-f",
        "answer.txt",
        "-o",
        "a.png",
        "-o",
        "json",
        "a",
        "--boxes",
        "svg",
        "b",
    ];
    mmq(folder.path(), &line);

    let json = std::fs::read_to_string(folder.path().join("a")).unwrap();
    assert_eq!(
        json,
        "[\n  {\"label\":\"red & white \\\"sign\\\"\",\"picture\":1,\"x1\":300,\"y1\":40,\"x2\":600,\"y2\":280}\n]\n"
    );

    let original = load(&folder.path().join("picture.png"));
    assert_eq!((original.width, original.height), SIZE);
    let drawn = load(&folder.path().join("a.png"));
    assert_eq!((drawn.width, drawn.height), SIZE);
    let frame = [0xf2, 0x4b, 0x5e];
    let (red, ground) = ([200, 0, 0], [0xc8; 3]);
    let [x1, y1, x2, y2] = RED;
    for (x, y, before, after) in [
        (x1, 160, red, frame),
        (x1 - 1, 160, ground, frame),
        (x2, 160, ground, frame),
        (x2 - 1, 160, red, frame),
        (550, y1, red, frame),
        (550, y1 - 1, ground, frame),
        (450, y2, ground, frame),
        (450, y2 - 1, red, frame),
        (x1 + 3, 160, red, red),
        (x1 - 4, 160, ground, ground),
        (450, y2 - 4, red, red),
        (450, y2 + 3, ground, ground),
    ] {
        assert_eq!((pixel(&original, x, y), pixel(&drawn, x, y)), (before, after), "at {x}, {y}");
    }

    let svg = std::fs::read_to_string(folder.path().join("b")).unwrap();
    let elements = xml(&svg);
    let named = |name: &str| elements.iter().filter(|e| e.name == name).collect::<Vec<_>>();
    assert_eq!(named("svg")[0].get("viewBox"), "0 0 1200 400");
    assert_eq!((named("title")[0].text.as_str(), named("text")[0].text.as_str()), (LABEL, LABEL));
    let frame = named("rect").into_iter().find(|rect| rect.get("stroke") == "#f24b5e").unwrap();
    let sides = ["x", "y", "width", "height"].map(|side| frame.get(side).parse::<f64>().unwrap());
    assert_eq!(sides, [300.0, 40.0, 300.0, 240.0]);
    let inside = media::load(named("image")[0].get("href"), &DecodeOptions::default()).unwrap();
    assert_eq!(inside, original);
}

#[test]
fn the_answer_of_a_run_becomes_boxes() {
    let folder = folder();
    let model = fixture("llava-mlp.gguf");
    let run = |more: &[&str]| {
        let all = ["run", "-m", model.to_str().unwrap(), "--temp", "0", "-n", "3", "-q", "--box-dialect", "qwen"];
        mmq(folder.path(), &[&all, more].concat())
    };
    let begun = "<ref>it</ref><box>(100,400),(750,600)</box>";
    // The picture lies in rows 400 to 800 of a square of 1200, or shows its columns 400 to 800.
    for (fit, [x1, y1, x2, y2]) in
        [("squash", [120, 160, 900, 240]), ("pad", [120, 80, 900, 320]), ("crop", [440, 160, 700, 240])]
    {
        let args = [
            "--image",
            "picture.png",
            "-p",
            "Where?",
            "--image-fit",
            fit,
            "--begin-answer",
            begun,
            "--boxes",
            "a.json",
        ];
        let (answer, _) = run(&args);
        assert!(answer.starts_with("it") && !answer.contains("<box>"), "{answer}");
        let json = std::fs::read_to_string(folder.path().join("a.json")).unwrap();
        let expected =
            format!("[\n  {{\"label\":\"it\",\"picture\":1,\"x1\":{x1},\"y1\":{y1},\"x2\":{x2},\"y2\":{y2}}}\n]\n");
        assert_eq!(json, expected, "{fit}");
    }
    let args = [
        "--image",
        "picture.png,picture.png",
        "-p",
        "Where?",
        "--begin-answer",
        begun,
        "--image-fit",
        "squash",
        "--json",
    ];
    let json: serde_json::Value = serde_json::from_str(&run(&args).0).unwrap();
    assert_eq!(
        json["boxes"][0],
        serde_json::json!({"label": "it", "picture": 2, "x1": 120, "y1": 160, "x2": 900, "y2": 240})
    );
    assert!(json["text"].as_str().unwrap().starts_with("it"));

    // What a tiny random model says where a box belongs is none.
    let (out, _) = run(&["--image", "picture.png", "--find", "the sign"]);
    assert_eq!(out, "[]\n");
    let (out, _) = run(&["--image", "picture.png", "--find", "the sign", "--boxes", "a.svg"]);
    assert!(out.starts_with("the sign<box>"), "{out}");
    assert!(std::fs::read_to_string(folder.path().join("a.svg")).unwrap().ends_with("</svg>\n"));
}

/// Qwen-VL is known by its vocabulary, MiniGPT-v2 by its template; both look at a squashed picture.
#[test]
fn models_that_point_need_no_flags() {
    let folder = folder();
    let run = |name: &str, begun: &str, more: &[&str]| {
        let model = fixture(name);
        let args = ["run", "-m", model.to_str().unwrap(), "--temp", "0", "-n", "2", "-q", "--image", "picture.png"];
        let asked = ["-p", "Where?", "--begin-answer", begun, "--boxes", "a.json"];
        let (answer, _) = mmq(folder.path(), &[&args[..], &asked, more].concat());
        (answer, std::fs::read_to_string(folder.path().join("a.json")).unwrap())
    };
    let expected = "[\n  {\"label\":\"it\",\"picture\":1,\"x1\":120,\"y1\":160,\"x2\":900,\"y2\":240}\n]\n";
    for (name, begun, more) in [
        ("qwen-vl.gguf", "<ref>it</ref><box>(100,400),(750,600)</box>", &[][..]),
        ("minigpt4-concat.gguf", "<p>it</p> {<10><40><75><60>}", &["--chat-template", "minigpt_v2"]),
    ] {
        let (answer, json) = run(name, begun, more);
        assert!(answer.starts_with("it") && !answer.contains(['<', '{']), "{name}: {answer}");
        assert_eq!(json, expected, "{name}");
    }
}

#[test]
fn what_cannot_be_is_said_before_the_model_runs() {
    let folder = folder();
    let model = fixture("llava-mlp.gguf");
    for (args, says) in [
        (&["-p", "x", "--boxes", "a.json"][..], "--boxes needs a picture"),
        (&["--find", "x"], "--find needs a picture"),
        (&["-p", "x", "--image", "picture.png", "--boxes", "a.json"], "--box-dialect qwen or minigpt_v2"),
        (&["-p", "x", "--image", "picture.png", "--boxes", "a.gif"], ".json, .png or .svg"),
        (&["-p", "x", "--image", "picture.png", "--boxes", "json", "-", "--json"], "--json has the boxes in it"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmq"));
        let output = command.args(["run", "-m"]).arg(&model).args(args).current_dir(folder.path()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{error}");
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn sessions_tell_places_as_they_come() {
    let engine = Engine::load(
        &fixture("llava-mlp.gguf"),
        None,
        &EngineOptions { image_fit: Some("squash".into()), ..EngineOptions::default() },
    );
    let engine = Arc::new(engine.unwrap());
    let decode = DecodeOptions::default();
    let encoded = |name: &str| {
        let image = media::load(fixture(name).to_str().unwrap(), &decode).unwrap();
        let size = [image.width as f64, image.height as f64];
        (engine.encode_image(&image, None, None).unwrap(), size)
    };
    let (first, _) = encoded("media/grey.png");
    let (second, [width, height]) = encoded("media/rgb.png");
    let begun = "<p>a</p> {<0><10><50><100>}<delim>{<20><20><30><30>} b";
    let generation = Generation {
        n_predict: Some(1),
        dialect: Some(Dialect::MiniGptV2),
        begun: begun.into(),
        ..Generation::default()
    };
    let mut session = Session::new(&engine, &SessionOptions::default(), &Cancel::default()).unwrap();
    let text = format!("{IMAGE_MARKER}{IMAGE_MARKER}{begun}");
    session.sync(&engine.prompt(&text, &[first, second]).unwrap(), None).unwrap();
    let mut events = Vec::new();
    let answer = session.generate_events(&generation, &mut |event| {
        events.push(match event {
            Event::Text(text) => Err(text.to_owned()),
            Event::Region(region) => Ok(region.clone()),
        });
        ControlFlow::Continue(())
    });
    let answer = answer.unwrap();
    let region = |points: [[f64; 2]; 2]| Region { label: "a".into(), picture: 1, points: points.to_vec() };
    let expected = [
        region([[0.0, 0.1 * height], [0.5 * width, height]]),
        region([[0.2 * width, 0.2 * height], [0.3 * width, 0.3 * height]]),
    ];
    assert_eq!(answer.regions, expected);
    assert_eq!(events[..3], [Err("a".to_owned()), Ok(expected[0].clone()), Ok(expected[1].clone())]);
    assert!(answer.text.starts_with("a b"), "{}", answer.text);

    // Without a picture there is nothing to point at.
    session.sync(&engine.prompt(begun, &[]).unwrap(), None).unwrap();
    let answer = session.generate(&generation, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(answer.text.starts_with(begun) && answer.regions.is_empty(), "{answer:?}");
}

/// A spot in a picture is found in what the model sees, and led back to where it was.
#[test]
fn views_lead_back_through_the_preprocessing() {
    let side = 112;
    for (width, height) in [(500, 300), (300, 500), (301, 299), (90, 400)] {
        for fit in ["crop", "pad", "squash"] {
            let fit = Fit::named(fit, CLIP_MEAN, side).unwrap();
            let preprocess =
                Preprocess { image_size: side, mean: CLIP_MEAN, std: CLIP_STD, fit, filter: Filter::Bilinear };
            // Near the middle, so that a crop shows it.
            let (x, y) = (width * 9 / 20, height * 11 / 20);
            let mut image = Image { width, height, rgb: vec![0; width * height * 3] };
            for row in y - 10..y + 10 {
                for column in x - 10..x + 10 {
                    image.rgb[(row * width + column) * 3 + 1] = 255;
                }
            }
            let (crops, _) = preprocess.crops(&image);
            // The fill of padding is no spot.
            let values: Vec<f64> = crops[0].rgb.chunks(3).map(|rgb| f64::from(rgb[1].saturating_sub(rgb[0]))).collect();
            let sum: f64 = values.iter().sum();
            let mean = |at: &dyn Fn(usize) -> usize| {
                values.iter().enumerate().map(|(i, value)| (at(i) as f64 + 0.5) * value).sum::<f64>()
                    / sum
                    / side as f64
            };
            let seen = [mean(&|i| i % side), mean(&|i| i / side)];
            let [back_x, back_y] = preprocess.view(width, height).to_pixels(seen);
            let off = (back_x - x as f64).abs().max((back_y - y as f64).abs());
            assert!(off < 0.35, "{width}x{height} by {}: {back_x}, {back_y} instead of {x}, {y}", preprocess.fit);
        }
    }
    let pad = Preprocess {
        image_size: side,
        mean: CLIP_MEAN,
        std: CLIP_STD,
        fit: Fit::named("pad", CLIP_MEAN, side).unwrap(),
        filter: Filter::Bicubic,
    };
    assert_eq!(pad.view(500, 300).to_pixels([1.0, 0.0]), [500.0, 0.0]);
}

struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
}

impl Element {
    fn get(&self, name: &str) -> &str {
        let found = self.attributes.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }
}

/// The elements of a document, which must be well-formed.
fn xml(text: &str) -> Vec<Element> {
    let plain = |text: &str| {
        for part in text.split('&').skip(1) {
            assert!(["amp;", "lt;", "gt;", "quot;", "#39;"].iter().any(|entity| part.starts_with(entity)), "{text}");
        }
        assert!(!text.contains(['<', '>']), "{text}");
        text.replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&#39;", "'")
            .replace("&amp;", "&")
    };
    let (mut elements, mut open): (Vec<Element>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        if let Some(parent) = open.last() {
            elements[*parent].text += plain(&rest[..at]).trim();
        }
        let end = at + rest[at..].find('>').expect("tags end");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(elements[open.pop().expect("a tag is open")].name, name);
            continue;
        }
        let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut element = Element { name: name.into(), attributes: Vec::new(), text: String::new() };
        while let Some((name, more)) = attributes.split_once("=\"") {
            let (value, more) = more.split_once('"').expect("values end");
            element.attributes.push((name.trim().into(), plain(value)));
            attributes = more;
        }
        assert_eq!(attributes.trim(), "");
        elements.push(element);
        if !closed {
            open.push(elements.len() - 1);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty());
    elements
}
