//! Pictures against Pillow and transformers: decoding of each kind of file, resizing byte for byte, and the crops of
//! each fit. Expectations were recorded by `tests/fixtures/make_media.py`; `MMQ_MEDIA_CASES` names a larger file of
//! resize and fit cases that the same script writes.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mmq::ErrorKind;
use mmq::media::decode::parse_color;
use mmq::media::preprocess::{CLIP_MEAN, CLIP_STD, llava_pinpoints, mean_color};
use mmq::media::{DecodeOptions, Filter, Fit, Image, Preprocess, decode, load, resize, select_best_resolution, unpad};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    resize: Vec<ResizeCase>,
    fit: Vec<FitCase>,
    levels: Vec<LevelsCase>,
    select: Vec<[usize; 4]>,
    unpad: Vec<[usize; 8]>,
    #[serde(default)]
    files: Vec<FileCase>,
}

/// Seed, extremes, width, height, new width, new height, filter, CRC-32 of the result.
type ResizeCase = (u64, bool, usize, usize, usize, usize, String, u32);
/// Seed, width, height, crop, fit, filter, grid, CRC-32 of each crop.
type FitCase = (u64, usize, usize, usize, String, String, Option<(usize, usize)>, Vec<u32>);

/// Mean, standard deviation, padding colour, CRC-32 of all 256 values as floats.
type LevelsCase = ([f32; 3], [f32; 3], [u8; 3], u32);
/// Name, background, width, height, largest difference allowed, RGB as base64.
type FileCase = (String, [u8; 3], usize, usize, u8, String);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/media")
}

fn read_expected(path: &Path) -> Expected {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The committed expectations, and the larger set if one is named.
fn all_expected() -> Vec<Expected> {
    let mut all = vec![read_expected(&folder().join("expected.json"))];
    if let Some(path) = std::env::var_os("MMQ_MEDIA_CASES") {
        all.push(read_expected(Path::new(&path)));
    }
    all
}

/// The script's noise: top bytes of a linear congruential generator.
fn noise(seed: u64, width: usize, height: usize, extremes: bool) -> Image {
    let mut state = seed;
    let rgb = (0..width * height * 3)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let top = (state >> 56) as u8;
            if extremes { if top >= 128 { 255 } else { 0 } } else { top }
        })
        .collect();
    Image { width, height, rgb }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

fn preprocess(image_size: usize, fit: &str, filter: &str) -> Preprocess {
    let fit = Fit::named(fit, CLIP_MEAN, image_size).unwrap();
    Preprocess { image_size, mean: CLIP_MEAN, std: CLIP_STD, fit, filter: filter.parse().unwrap() }
}

#[test]
fn resize_is_pillows() {
    let (mut cases, mut differing) = (0, Vec::new());
    for expected in all_expected() {
        for case in expected.resize {
            let (seed, extremes, width, height, to_width, to_height, ref filter, crc) = case;
            let image = noise(seed, width, height, extremes);
            let out = resize(&image, to_width, to_height, filter.parse().unwrap());
            assert_eq!((out.width, out.height, out.rgb.len()), (to_width, to_height, to_width * to_height * 3));
            if crc32(&out.rgb) != crc {
                differing.push(case);
            }
            cases += 1;
        }
    }
    println!("resize: {cases} cases, {} differ", differing.len());
    assert!(differing.is_empty(), "{} of {cases}: {differing:?}", differing.len());
}

#[test]
fn fits_are_the_references() {
    let (mut cases, mut differing) = (0, Vec::new());
    for expected in all_expected() {
        for case in expected.fit {
            let (seed, width, height, side, ref fit, ref filter, grid, ref crcs) = case;
            let (crops, got_grid) = preprocess(side, fit, filter).crops(&noise(seed, width, height, false));
            let got: Vec<u32> = crops.iter().map(|crop| crc32(&crop.rgb)).collect();
            if got != *crcs || got_grid != grid {
                differing.push(case);
            }
            cases += 1;
        }
    }
    println!("fits: {cases} cases, {} differ", differing.len());
    assert!(differing.is_empty(), "{} of {cases}: {differing:?}", differing.len());
}

#[test]
fn normalisation_is_bit_exact() {
    let ramp = Image { width: 16, height: 16, rgb: (0..=255u8).flat_map(|value| [value; 3]).collect() };
    for expected in all_expected() {
        for (mean, std, color, crc) in expected.levels {
            let preprocess = Preprocess { image_size: 16, mean, std, fit: Fit::Squash, filter: Filter::Bicubic };
            let crops = preprocess.run(&ramp);
            assert_eq!((crops.n_crops, crops.grid, crops.original), (1, None, (16, 16)));
            let bytes: Vec<u8> = crops.pixels.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!(crc32(&bytes), crc, "mean {mean:?}, std {std:?}");
            assert_eq!(mean_color(mean), color);
        }
    }
}

#[test]
fn resolutions_and_unpadding_are_the_references() {
    for expected in all_expected() {
        for [width, height, best_width, best_height] in expected.select {
            let best = select_best_resolution((width, height), &llava_pinpoints(336));
            assert_eq!(best, Some((best_width, best_height)), "{width}x{height}");
        }
        for [width, height, rows, cols, top, bottom, left, right] in expected.unpad {
            let kept = unpad((width, height), rows, cols);
            assert_eq!(kept, (top..bottom, left..right), "{width}x{height} on {rows}x{cols}");
        }
    }
}

#[test]
fn crops_of_every_fit_have_their_shape() {
    let image = noise(5, 90, 40, false);
    for (fit, n_crops, grid) in [("pad", 1, None), ("crop", 1, None), ("squash", 1, None), ("anyres", 4, Some((3, 1)))]
    {
        let preprocess = preprocess(28, fit, "bicubic");
        preprocess.validate().unwrap();
        let crops = preprocess.run(&image);
        assert_eq!((crops.n_crops, crops.grid, crops.original), (n_crops, grid, (90, 40)), "{fit}");
        assert_eq!(crops.pixels.len(), n_crops * 3 * 28 * 28);
    }
    let alone = Preprocess { fit: Fit::Anyres { pinpoints: vec![] }, ..preprocess(28, "pad", "bicubic") };
    assert_eq!((alone.run(&image).n_crops, alone.run(&image).grid), (1, None));
}

#[test]
fn extreme_shapes_cost_little() {
    // On a square or enlarged to its shortest edge, this picture would be hundreds of gigabytes.
    for (width, height) in [(300_000, 1), (1, 300_000)] {
        let image = Image { width, height, rgb: vec![77; width * height * 3] };
        for fit in ["pad", "crop", "squash", "anyres"] {
            let preprocess = preprocess(56, fit, "bicubic");
            let (crops, _) = preprocess.crops(&image);
            let middle = crops[0].rgb[(28 * 56 + 28) * 3];
            assert!(middle == 77 || fit == "pad", "{width}x{height} {fit}: {middle}");
        }
    }
}

#[test]
fn values_from_files_are_checked() {
    let good = preprocess(336, "anyres", "bicubic");
    good.validate().unwrap();
    for (bad, word) in [
        (Preprocess { image_size: 0, ..good.clone() }, "image size 0"),
        (Preprocess { image_size: 1 << 20, ..good.clone() }, "1048576"),
        (Preprocess { mean: [f32::NAN; 3], ..good.clone() }, "mean NaN"),
        (Preprocess { std: [0.0; 3], ..good.clone() }, "deviation 0"),
        (Preprocess { fit: Fit::Anyres { pinpoints: vec![(336, usize::MAX)] }, ..good.clone() }, "pinpoint"),
        (Preprocess { fit: Fit::Anyres { pinpoints: vec![(0, 336)] }, ..good.clone() }, "pinpoint 0x336"),
    ] {
        let error = bad.validate().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn names_parse_and_print() {
    for name in ["pad", "crop", "squash", "anyres"] {
        assert_eq!(name.parse::<Fit>().unwrap().to_string(), name);
    }
    for (name, filter) in Filter::ALL {
        assert_eq!(name.parse::<Filter>().unwrap(), filter);
        assert_eq!(filter.to_string(), name);
    }
    assert_eq!("pad".parse::<Fit>().unwrap(), Fit::Pad { fill: [122, 116, 104] });
    let error = "stretch".parse::<Fit>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("pad, crop, squash, anyres"), "{error}");
    let error = "nearest".parse::<Filter>().unwrap_err().to_string();
    assert!(error.contains("bicubic, bilinear, lanczos, box"), "{error}");
    assert_eq!(parse_color("#0a14C8").unwrap(), [10, 20, 200]);
    assert_eq!(parse_color("white").unwrap(), [255; 3]);
    for bad in ["", "#12345", "12345g", "+12345", "teal", "ééé"] {
        assert!(parse_color(bad).is_err(), "{bad}");
    }
}

#[test]
fn files_decode_as_in_pillow() {
    let mut failures = Vec::new();
    for (name, background, width, height, tolerance, rgb) in read_expected(&folder().join("expected.json")).files {
        let options = DecodeOptions { background, ..DecodeOptions::default() };
        let image = match load(folder().join(&name).to_str().unwrap(), &options) {
            Ok(image) => image,
            Err(error) => {
                failures.push(error.to_string());
                continue;
            }
        };
        let rgb = STANDARD.decode(rgb).unwrap();
        if (image.width, image.height) != (width, height) || image.rgb.len() != rgb.len() {
            failures.push(format!("{name}: {}x{}, expected {width}x{height}", image.width, image.height));
            continue;
        }
        let most = image.rgb.iter().zip(&rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        println!("{name}: differs by at most {most}");
        if most > tolerance {
            failures.push(format!("{name}: differs by {most}, more than {tolerance}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn error_of(name: &str, data: &[u8], options: &DecodeOptions) -> (ErrorKind, String) {
    let error = decode(name, data, options).unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn errors_name_the_picture_and_the_reason() {
    let options = DecodeOptions::default();
    let png = std::fs::read(folder().join("rgb.png")).unwrap();
    for (data, kind, words) in [
        (&b""[..], ErrorKind::Format, "x.png: the file is empty"),
        (b"hello", ErrorKind::Unsupported, "JPEG, PNG, WebP, GIF, BMP and TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", ErrorKind::Unsupported, "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", ErrorKind::Unsupported, "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", ErrorKind::Unsupported, "video"),
        (b"%PDF-1.7", ErrorKind::Unsupported, "PDF"),
        (b"<?xml version=\"1.0\"?><svg/>", ErrorKind::Unsupported, "SVG"),
        (b"GGUF\x03\0\0\0", ErrorKind::Unsupported, "a model"),
        (&png[..40], ErrorKind::Format, "damaged PNG"),
    ] {
        let (got, message) = error_of("x.png", data, &options);
        assert_eq!(got, kind, "{message}");
        assert!(message.starts_with("x.png: ") && message.contains(words), "{message}");
    }

    for name in ["420.jpeg", "progressive.jpeg", "turn6.jpeg"] {
        let jpeg = std::fs::read(folder().join(name)).unwrap();
        let (kind, message) = error_of(name, &jpeg[..jpeg.len() * 9 / 10], &options);
        assert_eq!(kind, ErrorKind::Format, "{message}");
        assert!(message.contains("damaged JPEG"), "{message}");
        decode(name, &[&jpeg[..], b"trailing bytes"].concat(), &options).unwrap();
    }

    let small = DecodeOptions { max_pixels: 400, ..options.clone() };
    let (kind, message) = error_of("x.png", &png, &small);
    assert_eq!(kind, ErrorKind::Memory);
    assert!(message.contains("24x17 is 408 pixels") && message.contains("400"), "{message}");

    let error = load("no/such/picture.png", &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().starts_with("no/such/picture.png"), "{error}");
    assert_eq!(load(folder().to_str().unwrap(), &options).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn bombs_stop_at_their_header() {
    // Headers alone, of pictures of 65535 x 65535.
    let gif = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;";
    let bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\xff\xff\0\0\xff\xff\0\0\x01\0\x18\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (data, name) in [(&gif[..], "GIF"), (bmp, "BMP")] {
        let (kind, message) = error_of(name, data, &DecodeOptions::default());
        assert_eq!(kind, ErrorKind::Memory, "{message}");
        assert!(message.contains("65535x65535 is 4294836225 pixels"), "{message}");
    }
}

#[test]
fn data_urls_decode() {
    let options = DecodeOptions::default();
    let bytes = std::fs::read(folder().join("rgb.png")).unwrap();
    let expected = decode("rgb.png", &bytes, &options).unwrap();
    let text = STANDARD.encode(&bytes);
    let escaped: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
    for url in [
        format!("data:image/png;base64,{text}"),
        format!("DATA:;base64,{}", text.trim_end_matches('=')),
        format!("data:image/jpeg;charset=utf-8;base64,{}", text.replace('+', "-").replace('/', "_")),
        format!("data:image/png;base64,{}\n{}", &text[..76], &text[76..]),
        format!("data:image/png;base64,{}", text.replace('+', "%2B").replace('=', "%3d")),
        format!("data:image/png,{escaped}"),
    ] {
        assert_eq!(load(&url, &options).unwrap(), expected, "{}", &url[..40]);
    }
    let long = "A".repeat(100_000);
    for (url, words) in [
        ("data:image/png;base64".to_owned(), "no comma"),
        ("data:image/png;base64,".to_owned(), "empty"),
        ("data:image/png;base64,@@@@".to_owned(), "not base64"),
        ("data:image/png,%zz".to_owned(), "hexadecimal"),
        (format!("data:image/png;base64,{long}"), "not a picture"),
        (format!("data:{long},"), "empty"),
    ] {
        let message = load(&url, &options).unwrap_err().to_string();
        assert!(message.starts_with("data: URL") && message.contains(words), "{message}");
        assert!(message.len() < 250, "{message}");
    }
}

/// Every fixture file with its name.
fn every_file() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension != "json"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() > 40);
    files
}

/// A picture or an error that names the file; never a panic, never a picture whose bytes do not fit its size.
fn decodes_or_fails(name: &str, data: &[u8]) {
    let options = DecodeOptions { max_pixels: 1 << 20, ..DecodeOptions::default() };
    match decode(name, data, &options) {
        Ok(image) => {
            assert!(image.width > 0 && image.height > 0);
            assert_eq!(image.rgb.len(), image.width * image.height * 3);
        }
        Err(error) => assert!(error.to_string().starts_with(name), "{error}"),
    }
}

#[test]
fn damaged_files_never_panic() {
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    // More rounds by hand: MMQ_MEDIA_ROUNDS=5000.
    let rounds = std::env::var("MMQ_MEDIA_ROUNDS").map_or(12, |rounds| rounds.parse().unwrap());
    for (name, data) in every_file() {
        for round in 0..rounds {
            let mut data = data.clone();
            for _ in 0..=random(4) {
                let at = random(if round % 2 == 0 { data.len() } else { data.len().min(64) });
                data[at] = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
            }
            if round % 3 == 0 {
                data.truncate(random(data.len()));
            }
            decodes_or_fails(&name, &data);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn random_bytes_never_panic(magic in 0..8usize, tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let magic: &[u8] = [
            &b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"[..], b"\xff\xd8\xff\xe0", b"GIF89a", b"BM",
            b"RIFF\0\0\0\0WEBPVP8 ", b"RIFF\0\0\0\0WEBPVP8L", b"II*\0\x08\0\0\0", b"",
        ][magic];
        decodes_or_fails("random", &[magic, &tail].concat());
    }

    #[test]
    fn resize_keeps_plain_colours(
        width in 1..60usize, height in 1..60usize, to_width in 1..60usize, to_height in 1..60usize,
        filter in 0..4usize, color in any::<[u8; 3]>(),
    ) {
        let image = Image { width, height, rgb: color.repeat(width * height) };
        let out = resize(&image, to_width, to_height, Filter::ALL[filter].1);
        prop_assert_eq!(out.rgb, color.repeat(to_width * to_height));
    }
}
