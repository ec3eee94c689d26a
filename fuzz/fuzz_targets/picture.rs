//! Any bytes as a picture: decoded within the limits or refused by name, never a panic; what is decoded goes through every
//! way of fitting it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmq::media::preprocess::{CLIP_MEAN, CLIP_STD};
use mmq::media::{DecodeOptions, Filter, Fit, Preprocess, decode};

const MAX_PIXELS: u64 = 1 << 18;
const SIDE: usize = 28;

fuzz_target!(
    // Panics of the decoders are caught by the code under test; the harness's own hook would end the process before that.
    init: std::panic::set_hook(Box::new(|_| {})),
    |data: &[u8]| {
        let options = DecodeOptions { max_pixels: MAX_PIXELS, ..DecodeOptions::default() };
        let image = match decode("fuzz", data, &options) {
            Ok(image) => image,
            Err(error) => return assert!(error.to_string().starts_with("fuzz: "), "{error}"),
        };
        assert!(image.width as u64 * image.height as u64 <= MAX_PIXELS && !image.rgb.is_empty());
        assert_eq!(image.rgb.len(), image.width * image.height * 3);
        for fit in ["crop", "pad", "squash", "anyres"] {
            let fit = Fit::named(fit, CLIP_MEAN, SIDE).expect("a known name");
            let preprocess =
                Preprocess { image_size: SIDE, mean: CLIP_MEAN, std: CLIP_STD, fit, filter: Filter::Bicubic };
            let crops = preprocess.run(&image);
            assert_eq!(crops.pixels.len(), crops.n_crops * 3 * SIDE * SIDE);
            assert!(crops.pixels.iter().all(|value| value.is_finite()));
        }
    }
);
