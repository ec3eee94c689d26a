//! Files and `data:` URLs to pixels. The formats' own decoding is the `image` crate's; here are the limits, the
//! orientation, the ways to 8-bit RGB, and messages that name the picture.
//!
//! Ways to 8-bit RGB: 16-bit values are v/257 rounded; transparent pixels are laid over the background in 8 bits with
//! exact rounding (Pillow's `background.paste(picture, mask=alpha)`); colour profiles are not applied, as the models'
//! own preprocessing does not.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::error::{Error, ErrorKind, Result, bail};
use crate::media::Image;

/// The formats that [`decode`] reads, for messages.
pub const FORMATS: &str =
    if cfg!(feature = "tiff") { "JPEG, PNG, WebP, GIF, BMP and TIFF" } else { "JPEG, PNG, WebP, GIF and BMP" };

/// Longest side of a picture: beyond it, the tables of a resize would outgrow the picture.
const MAX_SIDE: u32 = 1 << 20;

/// How to decode, and how large a picture may be.
#[derive(Clone, Debug)]
pub struct DecodeOptions {
    /// Colour under transparent pixels.
    pub background: [u8; 3],
    /// Most pixels that a picture may have.
    pub max_pixels: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        DecodeOptions { background: [255; 3], max_pixels: 100_000_000 }
    }
}

impl DecodeOptions {
    /// Most bytes that a file may have: what its pixels take uncompressed at 16 bits and four channels, and some for
    /// metadata.
    fn max_bytes(&self) -> u64 {
        self.max_pixels.saturating_mul(8).saturating_add(16 << 20)
    }
}

/// Decodes a picture; `name` stands for it in messages. The first frame of an animation; turned upright as its EXIF
/// or TIFF orientation says.
///
/// Errors: `Unsupported` for a format outside [`FORMATS`], `Memory` beyond the limits, `Format` for damage.
pub fn decode(name: &str, data: &[u8], options: &DecodeOptions) -> Result<Image> {
    if data.is_empty() {
        bail!(Format, "{name}: the file is empty");
    }
    let format = format_of(name, data)?;
    // The last guard: a decoder's own bug on hostile bytes must not take the program with it.
    match catch_unwind(AssertUnwindSafe(|| match palette_tiff(format, data) {
        Some((indices, palette)) => decode_as(format, name, &indices, Some(&palette), options),
        None => decode_as(format, name, data, None, options),
    })) {
        Ok(result) => result,
        Err(_) => bail!(Format, "{name}: damaged {}: the decoder gave up", label(format)),
    }
}

/// Reads a picture from a path, `-` (standard input) or a `data:` URL.
pub fn load(source: &str, options: &DecodeOptions) -> Result<Image> {
    if source == "-" {
        let data = read_capped("standard input", std::io::stdin().lock(), options)?;
        return decode("standard input", &data, options);
    }
    if is_data_url(source) {
        return load_data_url(&source[5..], options);
    }
    let file = File::open(source).map_err(|error| Error::io(source, &error))?;
    let data = read_capped(source, file, options)?;
    decode(source, &data, options)
}

/// Width and height of what [`load`] would read, mostly from the head of the file. `None` if only decoding tells, or it can be
/// read just once.
///
/// # Errors
/// The path cannot be opened; a `data:` URL holds no picture.
pub fn size(source: &str, options: &DecodeOptions) -> Result<Option<(usize, usize)>> {
    if source == "-" {
        return Ok(None);
    }
    if is_data_url(source) {
        return load(source, options).map(|image| Some((image.width, image.height)));
    }
    let file = File::open(source).map_err(|error| Error::io(source, &error))?;
    if !file.metadata().is_ok_and(|about| about.is_file()) {
        return Ok(None);
    }
    let head = || ImageReader::new(BufReader::new(file)).with_guessed_format().ok()?.into_dimensions().ok();
    // What is wrong with the picture is told by who decodes it.
    let size = catch_unwind(AssertUnwindSafe(head)).unwrap_or(None);
    Ok(size.map(|(width, height)| (width as usize, height as usize)))
}

fn is_data_url(source: &str) -> bool {
    source.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// A colour from `#rrggbb`, `rrggbb` or one of `white`, `black`, `grey`; `Usage` for anything else.
pub fn parse_color(text: &str) -> Result<[u8; 3]> {
    let hex = match text {
        "white" => "ffffff",
        "black" => "000000",
        "grey" | "gray" => "808080",
        _ => text.strip_prefix('#').unwrap_or(text),
    };
    match u32::from_str_radix(hex, 16) {
        Ok(rgb) if hex.len() == 6 && !hex.starts_with('+') => Ok([(rgb >> 16) as u8, (rgb >> 8) as u8, rgb as u8]),
        _ => bail!(Usage, "colour \"{text}\" is neither #rrggbb nor one of white, black, grey"),
    }
}

fn read_capped(name: &str, from: impl Read, options: &DecodeOptions) -> Result<Vec<u8>> {
    let max = options.max_bytes();
    let mut data = Vec::new();
    from.take(max.saturating_add(1)).read_to_end(&mut data).map_err(|error| Error::io(name, &error))?;
    if data.len() as u64 > max {
        bail!(Memory, "{name}: more than {max} bytes, the most for a picture of {} pixels", options.max_pixels);
    }
    Ok(data)
}

/// Decodes what follows `data:` in such a URL (RFC 2397): `[type][;parameter]*[;base64],payload`.
fn load_data_url(url: &str, options: &DecodeOptions) -> Result<Image> {
    let Some((head, payload)) = url.split_once(',') else {
        bail!(Format, "data: URL: no comma between its type and its data");
    };
    let kind: String = head.split(';').next().unwrap_or("").chars().take(40).collect();
    let name = if kind.is_empty() { "data: URL".to_owned() } else { format!("data: URL ({kind})") };
    if payload.len() as u64 > options.max_bytes().saturating_mul(3) {
        bail!(Memory, "{name}: {} characters, more than any picture of {} pixels", payload.len(), options.max_pixels);
    }
    let bytes = unescape(&name, payload)?;
    let base64 = head.rsplit(';').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("base64"));
    if !base64 {
        return decode(&name, &bytes, options);
    }
    // URLs are wrapped by mailers and shells, often lose their padding, and some writers use the URL-safe alphabet.
    let text: Vec<u8> = bytes
        .iter()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|byte| match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => *other,
        })
        .collect();
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    match GeneralPurpose::new(&alphabet::STANDARD, config).decode(text) {
        Ok(data) => decode(&name, &data, options),
        Err(error) => bail!(Format, "{name}: not base64: {error}"),
    }
}

/// Undoes `%xx`.
fn unescape<'a>(name: &str, text: &'a str) -> Result<Cow<'a, [u8]>> {
    let text = text.as_bytes();
    if !text.contains(&b'%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            out.push(*first);
            rest = tail;
            continue;
        }
        let digit = |at: usize| tail.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            bail!(Format, "{name}: \"%\" without two hexadecimal digits after it");
        };
        out.push((high * 16 + low) as u8);
        rest = &tail[2..];
    }
    Ok(Cow::Owned(out))
}

/// The format by content; the names of common others are known, to say so.
fn format_of(name: &str, data: &[u8]) -> Result<ImageFormat> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    match image::guess_format(data) {
        Ok(format @ (Jpeg | Png | WebP | Gif | Bmp)) => return Ok(format),
        Ok(Tiff) if cfg!(feature = "tiff") => return Ok(Tiff),
        _ => {}
    }
    match foreign(data) {
        Some(other) => bail!(Unsupported, "{name}: {other} is not supported; {FORMATS} are"),
        None => bail!(Unsupported, "{name}: not a picture in a known format; {FORMATS} are supported"),
    }
}

/// What a file of no supported format is, if it says so.
fn foreign(data: &[u8]) -> Option<&'static str> {
    if data.get(4..8) == Some(b"ftyp") {
        return Some(match data.get(8..12) {
            Some(b"avif" | b"avis") => "AVIF",
            Some(b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"mif1" | b"msf1") => "HEIC",
            Some(b"crx ") => "Canon raw",
            _ => "video (MP4 or QuickTime)",
        });
    }
    const MAGIC: [(&[u8], &str); 19] = [
        (b"%PDF", "PDF"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"8BPS", "Photoshop (PSD)"),
        (b"DDS ", "DDS"),
        (b"\0\0\x01\0", "ICO"),
        (b"#?RADIANCE", "Radiance HDR"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"qoif", "QOI"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "BigTIFF"),
        (b"MM\0+", "BigTIFF"),
        (b"\x1a\x45\xdf\xa3", "video (Matroska or WebM)"),
        (b"GGUF", "GGUF (a model, not a picture)"),
        (b"PK\x03\x04", "ZIP"),
        (b"\x1f\x8b", "gzip"),
    ];
    if let Some((_, other)) = MAGIC.iter().find(|(magic, _)| data.starts_with(magic)) {
        return Some(other);
    }
    let head = &data[..data.len().min(1024)];
    head.windows(4).any(|window| window.eq_ignore_ascii_case(b"<svg")).then_some("SVG")
}

/// A format's name for people.
fn label(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        _ => "TIFF",
    }
}

/// Decodes `data`; with a palette, its grey values are indices.
fn decode_as(
    format: ImageFormat,
    name: &str,
    data: &[u8],
    palette: Option<&[[u8; 3]; 256]>,
    options: &DecodeOptions,
) -> Result<Image> {
    let failed = |error: ImageError| describe(name, format, &error);

    let mut limits = Limits::default();
    limits.max_image_width = None;
    limits.max_image_height = None;
    limits.max_alloc = Some(options.max_bytes());
    let mut reader = ImageReader::with_format(Cursor::new(data), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;

    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        bail!(Format, "{name}: {width}x{height} pixels: an empty picture");
    }
    if u64::from(width) * u64::from(height) > options.max_pixels {
        let pixels = u64::from(width) * u64::from(height);
        bail!(Memory, "{name}: {width}x{height} is {pixels} pixels, more than the limit of {}", options.max_pixels);
    }
    if width > MAX_SIDE || height > MAX_SIDE {
        bail!(Memory, "{name}: {width}x{height}: no side may be longer than {MAX_SIDE} pixels");
    }
    if format == ImageFormat::Jpeg && !jpeg_is_whole(data) {
        // The decoder would fill the rest with grey.
        bail!(Format, "{name}: damaged JPEG: the file ends before its end marker");
    }
    let orientation = orientation(&mut decoder, format, data);
    let decoded = DynamicImage::from_decoder(decoder).map_err(failed)?;
    let mut rgb = to_rgb(decoded, options.background);
    if let Some(palette) = palette {
        rgb.pixels_mut().for_each(|pixel| pixel.0 = palette[usize::from(pixel.0[0])]);
    }
    let mut decoded = DynamicImage::ImageRgb8(rgb);
    decoded.apply_orientation(orientation);
    let rgb = decoded.into_rgb8();
    Ok(Image { width: rgb.width() as usize, height: rgb.height() as usize, rgb: rgb.into_raw() })
}

fn describe(name: &str, format: ImageFormat, error: &ImageError) -> Error {
    let format = label(format);
    match error {
        ImageError::Limits(_) => {
            Error::new(ErrorKind::Memory, format!("{name}: this {format} needs more memory than its limit: {error}"))
        }
        ImageError::Unsupported(_) => {
            Error::new(ErrorKind::Unsupported, format!("{name}: {format} of a kind that is not supported: {error}"))
        }
        _ => Error::new(ErrorKind::Format, format!("{name}: damaged {format}: {error}")),
    }
}

/// How the picture must be turned. Damaged metadata counts as none: the pixels are still good.
fn orientation(decoder: &mut impl ImageDecoder, format: ImageFormat, data: &[u8]) -> Orientation {
    if format == ImageFormat::Tiff {
        return decoder.orientation().unwrap_or(Orientation::NoTransforms);
    }
    let mut decoded = || decoder.exif_metadata().ok().flatten();
    let exif = match format {
        // The decoder would make room for as much as a hostile chunk says that it has.
        ImageFormat::WebP => webp_chunk(data, b"EXIF").map(<[u8]>::to_vec),
        // The decoder has read up to the pixels only; the chunk may also follow them.
        ImageFormat::Png => decoded().or_else(|| png_chunk(data, b"eXIf").map(<[u8]>::to_vec)),
        _ => decoded(),
    };
    // Some writers of WebP and PNG keep JPEG's prefix.
    exif.as_deref()
        .and_then(|exif| Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif)))
        .unwrap_or(Orientation::NoTransforms)
}

/// Whether a JPEG's own end marker follows its segments and scans; a thumbnail's inside a segment does not count.
fn jpeg_is_whole(data: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[first, marker]) = data.get(at..at + 2) {
        at += match (first, marker) {
            (0xff, 0xd9) => return true,
            // Fill bytes, escaped bytes and restarts within a scan, and what is no marker.
            (0xff, 0xff) => 1,
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => 2,
            (0xff, _) => match data.get(at + 2..at + 4) {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
            _ => 1,
        };
    }
    false
}

/// The first chunk of type `kind` in a PNG file.
fn png_chunk<'a>(data: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    let mut rest = data.get(8..)?;
    loop {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let len = u32::from_be_bytes(*len) as usize;
        let (found, tail) = tail.split_first_chunk::<4>()?;
        if found == kind {
            return tail.get(..len);
        }
        rest = tail.get(len.checked_add(4)?..)?;
    }
}

/// The first chunk of type `kind` in a WebP file.
fn webp_chunk<'a>(data: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    let mut rest = data.get(12..)?;
    loop {
        let (found, tail) = rest.split_first_chunk::<4>()?;
        let (len, tail) = tail.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len) as usize;
        if found == kind {
            return tail.get(..len);
        }
        rest = tail.get(len.checked_next_multiple_of(2)?..)?;
    }
}

/// A TIFF of 8-bit palette indices, which the decoder lacks, as the same file relabelled as grey, and its palette.
/// `None` for every other file, and for a damaged one: the decoder then says what is wrong.
fn palette_tiff(format: ImageFormat, data: &[u8]) -> Option<(Vec<u8>, [[u8; 3]; 256])> {
    const BITS_PER_SAMPLE: u16 = 258;
    const PHOTOMETRIC: u16 = 262;
    const COLOR_MAP: u16 = 320;
    const SHORT: u16 = 3;

    if format != ImageFormat::Tiff {
        return None;
    }
    let little = data.starts_with(b"II");
    let u16_at = |at: usize| {
        let bytes = *data.get(at..)?.first_chunk::<2>()?;
        Some(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let u32_at = |at: usize| {
        let bytes = *data.get(at..)?.first_chunk::<4>()?;
        Some(if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) } as usize)
    };
    // The first directory: a count, then entries of tag, type, count and value, 12 bytes each.
    let directory = u32_at(4)?;
    let entry = |tag: u16| {
        let n = usize::from(u16_at(directory)?);
        let mut entries = (0..n).map(|i| directory.saturating_add(2 + 12 * i));
        let at = entries.find(|at| u16_at(*at) == Some(tag))?;
        (u16_at(at + 2)? == SHORT).then_some((u32_at(at + 4)?, at + 8))
    };
    let (_, photometric) = entry(PHOTOMETRIC)?;
    let (_, bits) = entry(BITS_PER_SAMPLE)?;
    let (n_colors, colors) = entry(COLOR_MAP)?;
    if u16_at(photometric)? != 3 || u16_at(bits)? != 8 || n_colors != 3 * 256 {
        return None;
    }

    let colors = u32_at(colors)?;
    let mut palette = [[0; 3]; 256];
    for (index, color) in palette.iter_mut().enumerate() {
        for (channel, value) in color.iter_mut().enumerate() {
            // The high byte: writers scale by 256 as often as by 257.
            *value = (u16_at(colors.checked_add(2 * (256 * channel + index))?)? >> 8) as u8;
        }
    }
    let mut grey = data.to_vec();
    let black_is_zero = if little { 1u16.to_le_bytes() } else { 1u16.to_be_bytes() };
    grey[photometric..photometric + 2].copy_from_slice(&black_is_zero);
    Some((grey, palette))
}

/// 8-bit RGB with transparent pixels over `background`.
fn to_rgb(image: DynamicImage, background: [u8; 3]) -> image::RgbImage {
    match image.color() {
        ColorType::Rgb8 | ColorType::L8 | ColorType::Rgb16 | ColorType::L16 | ColorType::Rgb32F => image.into_rgb8(),
        _ => {
            let rgba = image.into_rgba8();
            let (width, height) = rgba.dimensions();
            let mut rgb = Vec::with_capacity(rgba.len() / 4 * 3);
            for pixel in rgba.as_raw().chunks_exact(4) {
                rgb.extend((0..3).map(|c| over(pixel[c], background[c], pixel[3])));
            }
            image::RgbImage::from_raw(width, height, rgb).expect("three bytes were pushed for each pixel")
        }
    }
}

/// `value` over `background` at `alpha`/255, rounded.
pub(crate) fn over(value: u8, background: u8, alpha: u8) -> u8 {
    let sum = u32::from(value) * u32::from(alpha) + u32::from(background) * (255 - u32::from(alpha)) + 128;
    (((sum >> 8) + sum) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::webp_chunk;

    #[test]
    fn a_webp_chunk_lies_within_the_file() {
        let mut file = b"RIFF\x2e\0\0\0WEBPVP8 \x03\0\0\0abc\0EXIF\x02\0\0\0de".to_vec();
        assert_eq!(webp_chunk(&file, b"VP8 "), Some(&b"abc"[..]));
        assert_eq!(webp_chunk(&file, b"EXIF"), Some(&b"de"[..]));
        assert_eq!(webp_chunk(&file, b"XMP "), None);
        let length = file.len() - 6;
        file[length..length + 4].fill(0xff);
        assert_eq!(webp_chunk(&file, b"EXIF"), None);
        assert_eq!(webp_chunk(&file, b"XMP "), None);
    }
}
