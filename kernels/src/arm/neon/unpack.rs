//! Rows of blocks to groups of quants: into a panel, or straight into the products of a few tokens.
//!
//! Four rows at a time: 16 bytes of each row are transposed while they are still packed (or come so, interleaved), so
//! that each vector holds 4 bytes of 4 rows; the bit operations that follow are the same for every byte.

use super::{bit, field, from_halves, iq4_values, load, load_half, store, store_floats};
use crate::Dtype;
use crate::arm::touch;
use crate::block::*;
use crate::panel::{FLOAT_COLS, FloatPanel, PANEL_COLS, PANEL_ROWS, Panel, Source};
use crate::scalar::unpack::offset;
use std::arch::aarch64::*;
use std::marker::PhantomData;
use std::mem::offset_of;

pub fn unpack(dtype: Dtype, source: &Source<'_>, panel: &mut Panel) {
    let (weights, size) = dtype.block();
    assert!(source.row_bytes() / size * weights <= PANEL_COLS);
    // SAFETY: this function is in the table of processors with NEON only.
    unsafe {
        match source {
            Source::Rows(rows) => groups(dtype, &Rows::apart(rows), panel),
            Source::Panel(bytes) => groups(dtype, &Rows::interleaved(bytes), panel),
        }
    }
}

pub fn unpack_float(dtype: Dtype, source: &Source<'_>, panel: &mut FloatPanel) {
    let n = source.row_bytes() / dtype.block().1;
    assert!(n <= FLOAT_COLS);
    // SAFETY: this function is in the table of processors with NEON only.
    unsafe {
        match source {
            Source::Rows(rows) => columns(dtype, &Rows::apart(rows), 0, n, panel),
            Source::Panel(bytes) => columns(dtype, &Rows::interleaved(bytes), 0, n, panel),
        }
    }
}

pub fn prefetch(source: &Source<'_>) {
    let ahead = |bytes: &[u8]| (0..bytes.len()).step_by(64).for_each(|at| touch(bytes.as_ptr().wrapping_add(at)));
    match source {
        Source::Rows(rows) => rows.iter().for_each(|row| ahead(row)),
        Source::Panel(panel) => ahead(panel),
    }
}

/// The array of `$n` vectors `$q`. (The library's functions that make arrays are not inlined with functions of a target
/// feature, and the vectors would pass through memory.)
macro_rules! vectors {
    ($i:ident in $n:literal => $q:expr) => {{
        let mut vectors = [vdupq_n_u8(0); $n];
        for $i in 0..$n {
            vectors[$i] = $q;
        }
        vectors
    }};
}

/// A loop whose index is a constant in each turn, so that shifts by it are, too.
macro_rules! unrolled {
    ($i:ident in [$($n:literal)*] $body:block) => {
        $({
            let $i: usize = $n;
            $body
        })*
    };
}

mod unpack_small;

/// In the place of [`Groups::take`]'s bits: quants that are signed and have no min.
pub(in crate::arm) const SIGNED: usize = 8;

/// Takes the groups of 16 rows of quantized weights, of one quarter of the rows after the other.
pub(in crate::arm) trait Groups {
    /// Whether the rows are read as fast as memory gives them, and ought to be asked for ahead.
    const STREAMS: bool;

    /// Group `group` of the rows of quarter `quarter`: `STEPS` times 4 columns of quants of `BITS` bits, or [`SIGNED`] ones.
    ///
    /// # Safety
    /// The processor must have the level that the receiver is made for.
    unsafe fn take<const STEPS: usize, const BITS: usize>(
        &mut self,
        quarter: usize,
        group: usize,
        q: [uint8x16_t; STEPS],
        scale: float32x4_t,
        min: float32x4_t,
    );
}

/// Takes the columns of 16 rows of float weights.
pub(in crate::arm) trait FloatColumns {
    /// As [`Groups::STREAMS`].
    const STREAMS: bool;

    /// Column `column` of the rows of quarter `quarter`.
    ///
    /// # Safety
    /// The column must be one of those that the receiver was made for, and the processor must have NEON.
    unsafe fn take(&mut self, quarter: usize, column: usize, v: float32x4_t);
}

impl Groups for Panel {
    const STREAMS: bool = false;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn take<const STEPS: usize, const BITS: usize>(
        &mut self,
        quarter: usize,
        group: usize,
        q: [uint8x16_t; STEPS],
        scale: float32x4_t,
        min: float32x4_t,
    ) {
        for (to, q) in self.q[STEPS * group..][..STEPS].iter_mut().zip(q) {
            store(&mut to.as_chunks_mut().0[quarter], q);
        }
        store_floats(&mut self.scale[group].as_chunks_mut().0[quarter], scale);
        if BITS != SIGNED {
            store_floats(&mut self.min[group].as_chunks_mut().0[quarter], min);
        }
    }
}

impl FloatColumns for FloatPanel {
    const STREAMS: bool = false;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn take(&mut self, quarter: usize, column: usize, v: float32x4_t) {
        store_floats(&mut self.0[column].as_chunks_mut().0[quarter], v);
    }
}

/// Sixteen rows of the same length: apart, or `INTERLEAVED`.
pub(in crate::arm) struct Rows<'a, const INTERLEAVED: bool> {
    /// The beginning of each row, or of the panel.
    start: [*const u8; PANEL_ROWS],
    /// Bytes of a row.
    len: usize,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> Rows<'a, false> {
    pub fn apart(rows: &[&'a [u8]; PANEL_ROWS]) -> Self {
        assert!(rows.iter().all(|row| row.len() == rows[0].len()));
        Rows { start: rows.map(<[u8]>::as_ptr), len: rows[0].len(), bytes: PhantomData }
    }
}

impl<'a> Rows<'a, true> {
    pub fn interleaved(panel: &'a [u8]) -> Self {
        Rows { start: [panel.as_ptr(); PANEL_ROWS], len: panel.len() / PANEL_ROWS, bytes: PhantomData }
    }
}

impl<const INTERLEAVED: bool> Rows<'_, INTERLEAVED> {
    /// Asks for what follows bytes `at..at + size` of the rows: in a panel, some lines on; for rows apart, the same bytes of
    /// the next 16 rows.
    #[inline]
    fn ahead(&self, at: usize, size: usize) {
        const AHEAD: usize = 2048;
        if INTERLEAVED {
            let (at, size) = (PANEL_ROWS * at + AHEAD, PANEL_ROWS * size);
            (0..size).step_by(64).for_each(|i| touch(self.start[0].wrapping_add(at + i)));
        } else {
            for line in at.div_ceil(64)..(at + size).div_ceil(64) {
                self.start.iter().for_each(|row| touch(row.wrapping_add(PANEL_ROWS * self.len + 64 * line)));
            }
        }
    }
}

/// A block of 4 of the rows. Offsets are those within the block of one row.
#[derive(Clone, Copy)]
struct Block<'a, const INTERLEAVED: bool> {
    rows: &'a Rows<'a, INTERLEAVED>,
    /// Where the block begins in its row; `size` bytes from there on lie in the row.
    first: usize,
    size: usize,
    /// Which 4 of the rows.
    quarter: usize,
}

impl<'a, const INTERLEAVED: bool> Block<'a, INTERLEAVED> {
    fn new(rows: &'a Rows<'a, INTERLEAVED>, first: usize, size: usize, quarter: usize) -> Self {
        assert!(first + size <= rows.len && quarter < 4);
        Block { rows, first, size, quarter }
    }

    /// The `N` bytes at `at` of row `r` of the four.
    #[inline]
    fn bytes<const N: usize>(&self, r: usize, at: usize) -> &[u8; N] {
        assert!(!INTERLEAVED && at + N <= self.size && r < 4);
        // SAFETY: the block's bytes lie in the row, and these in the block.
        unsafe { &*self.rows.start[4 * self.quarter + r].add(self.first + at).cast() }
    }

    /// The units of `N / 4` bytes at `at` of the four rows of a panel.
    #[inline]
    fn units<const N: usize>(&self, at: usize) -> &[u8; N] {
        assert!(INTERLEAVED && at + N / 4 <= self.size);
        // SAFETY: the block's bytes lie in the panel, 16 times as far from its beginning as in a row, and these in the block.
        unsafe { &*self.rows.start[0].add(PANEL_ROWS * (self.first + at) + N * self.quarter).cast() }
    }

    /// Vector `i` holds bytes `at + 4 i ..` of each row.
    #[inline]
    #[target_feature(enable = "neon")]
    fn transpose(&self, at: usize) -> [uint8x16_t; 4] {
        if INTERLEAVED {
            return [self.words(at), self.words(at + 4), self.words(at + 8), self.words(at + 12)];
        }
        let row = |r: usize| vreinterpretq_u32_u8(load(self.bytes(r, at)));
        let (a, b, c, d) = (row(0), row(1), row(2), row(3));
        let pairs = |a, b| (vreinterpretq_u64_u32(vtrn1q_u32(a, b)), vreinterpretq_u64_u32(vtrn2q_u32(a, b)));
        let ((ab_even, ab_odd), (cd_even, cd_odd)) = (pairs(a, b), pairs(c, d));
        [
            vreinterpretq_u8_u64(vtrn1q_u64(ab_even, cd_even)),
            vreinterpretq_u8_u64(vtrn1q_u64(ab_odd, cd_odd)),
            vreinterpretq_u8_u64(vtrn2q_u64(ab_even, cd_even)),
            vreinterpretq_u8_u64(vtrn2q_u64(ab_odd, cd_odd)),
        ]
    }

    /// The 32 bytes at `at` of each row, as by [`Block::transpose`].
    #[inline]
    #[target_feature(enable = "neon")]
    fn transpose_32(&self, at: usize) -> [uint8x16_t; 8] {
        let ([a, b, c, d], [e, f, g, h]) = (self.transpose(at), self.transpose(at + 16));
        [a, b, c, d, e, f, g, h]
    }

    /// The 4 bytes at `at` of each row.
    #[inline]
    #[target_feature(enable = "neon")]
    fn words(&self, at: usize) -> uint8x16_t {
        if INTERLEAVED {
            return load(self.units(at));
        }
        let mut words = [[0; 4]; 4];
        for (r, word) in words.iter_mut().enumerate() {
            *word = *self.bytes(r, at);
        }
        load(words.as_flattened().first_chunk().expect("four words"))
    }

    /// The 2 bytes at `at` of each row.
    #[inline]
    #[target_feature(enable = "neon")]
    fn shorts(&self, at: usize) -> uint16x4_t {
        if INTERLEAVED {
            return vreinterpret_u16_u8(load_half(self.units(at)));
        }
        let mut shorts = [[0; 2]; 4];
        for (r, short) in shorts.iter_mut().enumerate() {
            *short = *self.bytes(r, at);
        }
        vreinterpret_u16_u8(load_half(shorts.as_flattened().first_chunk().expect("four shorts")))
    }

    /// The byte at `at` of each row, as a number.
    #[inline]
    #[target_feature(enable = "neon")]
    fn singles(&self, at: usize) -> uint32x4_t {
        let mut wide = [0; 4];
        for (r, wide) in wide.iter_mut().enumerate() {
            *wide = u32::from(if INTERLEAVED { self.units::<4>(at)[r] } else { self.bytes::<1>(r, at)[0] });
        }
        // SAFETY: 16 bytes are readable.
        unsafe { vld1q_u32(wide.as_ptr()) }
    }

    /// The F16 at `at` of each row.
    #[inline]
    #[target_feature(enable = "neon")]
    fn floats(&self, at: usize) -> float32x4_t {
        from_halves(self.shorts(at))
    }

    /// The 32 nibbles of the 16 bytes at `at`.
    #[inline]
    #[target_feature(enable = "neon")]
    fn nibbles(&self, at: usize) -> [uint8x16_t; 8] {
        let [a, b, c, d] = self.transpose(at);
        let (low, high) = (|v| field(v, 0, 15), |v| field(v, 4, 15));
        [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
    }
}

/// The two F16 of each 32-bit lane: the low ones and the high ones.
#[inline]
#[target_feature(enable = "neon")]
fn halves(v: uint8x16_t) -> [float32x4_t; 2] {
    let v = vreinterpretq_u32_u8(v);
    [from_halves(vmovn_u32(v)), from_halves(vshrn_n_u32::<16>(v))]
}

/// The `n` bits from bit `at` on of each 32-bit lane.
#[inline]
#[target_feature(enable = "neon")]
fn bits(v: uint8x16_t, at: usize, n: u32) -> uint32x4_t {
    let v = vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(-(at as i32)));
    if at as u32 + n == 32 { v } else { vandq_u32(v, vdupq_n_u32((1 << n) - 1)) }
}

/// Byte `i` of each 32-bit lane as a float.
#[inline]
#[target_feature(enable = "neon")]
fn byte(v: uint8x16_t, i: usize) -> float32x4_t {
    vcvtq_f32_u32(bits(v, 8 * i, 8))
}

/// Signed byte `i` of each 32-bit lane as a float.
#[inline]
#[target_feature(enable = "neon")]
fn signed_byte(v: uint8x16_t, i: usize) -> float32x4_t {
    let v = vshlq_s32(vreinterpretq_s32_u8(v), vdupq_n_s32(24 - 8 * i as i32));
    vcvtq_f32_s32(vshrq_n_s32::<24>(v))
}

/// The min that makes the quants of a symmetric type with scale `scale` unsigned.
#[inline]
#[target_feature(enable = "neon")]
fn shifted(dtype: Dtype, scale: float32x4_t) -> float32x4_t {
    vmulq_f32(scale, vdupq_n_f32(f32::from(offset(dtype))))
}

/// Byte `i` of each 32-bit lane, in all four bytes of it.
#[inline]
#[target_feature(enable = "neon")]
fn spread(v: uint8x16_t, i: usize) -> uint8x16_t {
    const FIRST: [u8; 16] = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12];
    vqtbl1q_u8(v, vaddq_u8(load(&FIRST), vdupq_n_u8(i as u8)))
}

/// All ones in byte `j` of each 32-bit lane whose bit `4 · upper + j` is set.
#[inline]
#[target_feature(enable = "neon")]
fn set_bits(v: uint8x16_t, upper: bool) -> uint8x16_t {
    let mask = if upper { 0x8040_2010 } else { 0x0804_0201 };
    vtstq_u8(v, vreinterpretq_u8_u32(vdupq_n_u32(mask)))
}

/// Hands the groups of all blocks of quantized rows to `out`.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::arm) fn groups<const P: bool, S: Groups>(dtype: Dtype, rows: &Rows<'_, P>, out: &mut S) {
    match dtype {
        Dtype::Q4_0 => blocks(Dtype::Q4_0, rows, out, |b, i, out| q4_0(b, i, out)),
        Dtype::Q4_1 => blocks(Dtype::Q4_1, rows, out, |b, i, out| q4_1(b, i, out)),
        Dtype::Q5_0 => blocks(Dtype::Q5_0, rows, out, |b, i, out| q5_0(b, i, out)),
        Dtype::Q5_1 => blocks(Dtype::Q5_1, rows, out, |b, i, out| q5_1(b, i, out)),
        Dtype::Q8_0 => blocks(Dtype::Q8_0, rows, out, |b, i, out| q8_0(b, i, out)),
        Dtype::IQ4_NL => blocks(Dtype::IQ4_NL, rows, out, |b, i, out| iq4_nl(b, i, out)),
        Dtype::Q2_K => blocks(Dtype::Q2_K, rows, out, |b, i, out| q2_k(b, i, out)),
        Dtype::Q3_K => blocks(Dtype::Q3_K, rows, out, |b, i, out| q3_k(b, i, out)),
        Dtype::Q4_K => blocks(Dtype::Q4_K, rows, out, |b, i, out| q4_k(b, i, out)),
        Dtype::Q5_K => blocks(Dtype::Q5_K, rows, out, |b, i, out| q5_k(b, i, out)),
        Dtype::Q6_K => blocks(Dtype::Q6_K, rows, out, |b, i, out| q6_k(b, i, out)),
        Dtype::IQ4_XS => blocks(Dtype::IQ4_XS, rows, out, |b, i, out| iq4_xs(b, i, out)),
        Dtype::IQ2_XXS => blocks(Dtype::IQ2_XXS, rows, out, |b, i, out| unpack_small::iq2_xxs(b, i, out)),
        Dtype::IQ2_XS => blocks(Dtype::IQ2_XS, rows, out, |b, i, out| unpack_small::iq2_xs(b, i, out)),
        Dtype::IQ2_S => blocks(Dtype::IQ2_S, rows, out, |b, i, out| unpack_small::iq2_s(b, i, out)),
        Dtype::IQ3_XXS => blocks(Dtype::IQ3_XXS, rows, out, |b, i, out| unpack_small::iq3_xxs(b, i, out)),
        Dtype::IQ3_S => blocks(Dtype::IQ3_S, rows, out, |b, i, out| unpack_small::iq3_s(b, i, out)),
        Dtype::IQ1_S => blocks(Dtype::IQ1_S, rows, out, |b, i, out| unpack_small::iq1_s(b, i, out)),
        Dtype::IQ1_M => blocks(Dtype::IQ1_M, rows, out, |b, i, out| unpack_small::iq1_m(b, i, out)),
        Dtype::TQ1_0 => blocks(Dtype::TQ1_0, rows, out, |b, i, out| unpack_small::tq1_0(b, i, out)),
        Dtype::TQ2_0 => blocks(Dtype::TQ2_0, rows, out, |b, i, out| unpack_small::tq2_0(b, i, out)),
        Dtype::Q1_0 => blocks(Dtype::Q1_0, rows, out, |b, i, out| unpack_small::q1_0(b, i, out)),
        Dtype::Q2_0 => blocks(Dtype::Q2_0, rows, out, |b, i, out| unpack_small::q2_0(b, i, out)),
        Dtype::MXFP4 => blocks(Dtype::MXFP4, rows, out, |b, i, out| unpack_small::mxfp4(b, i, out)),
        Dtype::NVFP4 => blocks(Dtype::NVFP4, rows, out, |b, i, out| unpack_small::nvfp4(b, i, out)),
        _ => unreachable!("{dtype} has no quants"),
    }
}

/// Runs `f(block, index, out)` on each block of each quarter of the rows.
#[inline]
#[target_feature(enable = "neon")]
fn blocks<const P: bool, S: Groups>(
    dtype: Dtype,
    rows: &Rows<'_, P>,
    out: &mut S,
    f: impl Fn(Block<'_, P>, usize, &mut S),
) {
    let size = dtype.block().1;
    for i in 0..rows.len / size {
        if S::STREAMS {
            rows.ahead(i * size, size);
        }
        for quarter in 0..4 {
            f(Block::new(rows, i * size, size, quarter), i, out);
        }
    }
}

/// [`Groups::take`] of unsigned quants.
#[inline]
#[target_feature(enable = "neon")]
fn unsigned<const STEPS: usize, const BITS: usize>(
    out: &mut impl Groups,
    quarter: usize,
    group: usize,
    q: [uint8x16_t; STEPS],
    scale: float32x4_t,
    min: float32x4_t,
) {
    // SAFETY: the receiver was made where its level was detected.
    unsafe { out.take::<STEPS, BITS>(quarter, group, q, scale, min) }
}

/// [`Groups::take`] of signed quants.
#[inline]
#[target_feature(enable = "neon")]
fn signed(out: &mut impl Groups, quarter: usize, group: usize, q: [uint8x16_t; 8], scale: float32x4_t) {
    // SAFETY: the receiver was made where its level was detected.
    unsafe { out.take::<8, SIGNED>(quarter, group, q, scale, vdupq_n_f32(0.0)) }
}

#[inline]
#[target_feature(enable = "neon")]
fn q4_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q4_0, d));
    unsigned::<8, 4>(out, b.quarter, i, b.nibbles(offset_of!(Q4_0, qs)), d, shifted(Dtype::Q4_0, d));
}

#[inline]
#[target_feature(enable = "neon")]
fn q4_1<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let [d, m] = halves(b.words(offset_of!(Q4_1, d)));
    unsigned::<8, 4>(out, b.quarter, i, b.nibbles(offset_of!(Q4_1, qs)), d, vnegq_f32(m));
}

/// The quants of Q5_0 and Q5_1.
#[inline]
#[target_feature(enable = "neon")]
fn five_bits<const P: bool>(b: Block<'_, P>, qh: usize, qs: usize) -> [uint8x16_t; 8] {
    let qh = b.words(qh);
    let mut q = b.nibbles(qs);
    unrolled!(s in [0 1 2 3 4 5 6 7] {
        let fifth = set_bits(spread(qh, s / 2), s % 2 == 1);
        q[s] = vorrq_u8(q[s], vandq_u8(fifth, vdupq_n_u8(16)));
    });
    q
}

#[inline]
#[target_feature(enable = "neon")]
fn q5_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q5_0, d));
    let q = five_bits(b, offset_of!(Q5_0, qh), offset_of!(Q5_0, qs));
    unsigned::<8, 5>(out, b.quarter, i, q, d, shifted(Dtype::Q5_0, d));
}

#[inline]
#[target_feature(enable = "neon")]
fn q5_1<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let [d, m] = halves(b.words(offset_of!(Q5_1, d)));
    let q = five_bits(b, offset_of!(Q5_1, qh), offset_of!(Q5_1, qs));
    unsigned::<8, 5>(out, b.quarter, i, q, d, vnegq_f32(m));
}

#[inline]
#[target_feature(enable = "neon")]
fn q8_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    signed(out, b.quarter, i, b.transpose_32(offset_of!(Q8_0, qs)), b.floats(offset_of!(Q8_0, d)));
}

/// The values of the 32 codes at `at`.
#[inline]
#[target_feature(enable = "neon")]
fn iq4<const P: bool>(b: Block<'_, P>, at: usize) -> [uint8x16_t; 8] {
    let mut q = b.nibbles(at);
    for q in &mut q {
        *q = iq4_values(*q);
    }
    q
}

#[inline]
#[target_feature(enable = "neon")]
fn iq4_nl<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    signed(out, b.quarter, i, iq4(b, offset_of!(IQ4_NL, qs)), b.floats(offset_of!(IQ4_NL, d)));
}

#[inline]
#[target_feature(enable = "neon")]
fn q2_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let [d, dmin] = halves(b.words(offset_of!(Q2_K, d)));
    for h in 0..2 {
        let q = b.transpose_32(offset_of!(Q2_K, qs) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            // Four groups' scales and mins are in one word.
            let v = b.words(offset_of!(Q2_K, scales) + 8 * h + j / 2 * 4);
            let (scales, mins) = (field(v, 0, 15), field(v, 4, 15));
            unrolled!(part in [0 1] {
                let scale = vmulq_f32(d, byte(scales, 2 * (j % 2) + part));
                let min = vmulq_f32(dmin, byte(mins, 2 * (j % 2) + part));
                let q = vectors!(s in 4 => field(q[4 * part + s], 2 * j, 3));
                unsigned::<4, 2>(out, b.quarter, 16 * i + 8 * h + 2 * j + part, q, scale, min);
            });
        });
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn q3_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q3_K, d));
    let scales = offset_of!(Q3_K, scales);
    let (low_a, low_b, upper) = (b.words(scales), b.words(scales + 4), b.words(scales + 8));
    let high = b.transpose_32(offset_of!(Q3_K, hmask));
    unrolled!(h in [0 1] {
        let low = b.transpose_32(offset_of!(Q3_K, qs) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            let word = 2 * h + j / 2;
            let four = field(if word.is_multiple_of(2) { low_a } else { low_b }, word / 2 * 4, 15);
            let two = vshlq_n_u8::<4>(field(upper, 2 * word, 3));
            let v = vsubq_u8(vorrq_u8(four, two), vdupq_n_u8(32));
            unrolled!(part in [0 1] {
                let scale = vmulq_f32(d, signed_byte(v, 2 * (j % 2) + part));
                let q = vectors!(s in 4 => {
                    vorrq_u8(field(low[4 * part + s], 2 * j, 3), bit(high[4 * part + s], 4 * h + j, 2))
                });
                let group = 16 * i + 8 * h + 2 * j + part;
                unsigned::<4, 3>(out, b.quarter, group, q, scale, shifted(Dtype::Q3_K, scale));
            });
        });
    });
}

/// The factors, and the scales and mins of groups by fours in bytes, of Q4_K and Q5_K: their blocks both begin with d,
/// dmin and the packed scales.
struct GroupsK4 {
    d: float32x4_t,
    dmin: float32x4_t,
    scales: [uint8x16_t; 2],
    mins: [uint8x16_t; 2],
}

impl GroupsK4 {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new<const P: bool>(b: Block<'_, P>) -> GroupsK4 {
        const { assert!(offset_of!(Q4_K, scales) == 4 && offset_of!(Q5_K, scales) == 4) };
        let [factors, s, m, rest] = b.transpose(0);
        let [d, dmin] = halves(factors);
        let upper = |v| vandq_u8(vshrq_n_u8::<2>(v), vdupq_n_u8(0x30));
        GroupsK4 {
            d,
            dmin,
            scales: [field(s, 0, 63), vorrq_u8(field(rest, 0, 15), upper(s))],
            mins: [field(m, 0, 63), vorrq_u8(field(rest, 4, 15), upper(m))],
        }
    }

    /// Scale and min of group `g`.
    #[inline]
    #[target_feature(enable = "neon")]
    fn get(&self, g: usize) -> (float32x4_t, float32x4_t) {
        let (scale, min) = (byte(self.scales[g / 4], g % 4), byte(self.mins[g / 4], g % 4));
        (vmulq_f32(self.d, scale), vmulq_f32(self.dmin, min))
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn q4_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let k = GroupsK4::new(b);
    unrolled!(j in [0 1 2 3] {
        let v = b.transpose_32(offset_of!(Q4_K, qs) + 32 * j);
        unrolled!(n in [0 1] {
            let (scale, min) = k.get(2 * j + n);
            let q = vectors!(s in 8 => field(v[s], 4 * n, 15));
            unsigned::<8, 4>(out, b.quarter, 8 * i + 2 * j + n, q, scale, min);
        });
    });
}

#[inline]
#[target_feature(enable = "neon")]
fn q5_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let k = GroupsK4::new(b);
    let high = b.transpose_32(offset_of!(Q5_K, qh));
    unrolled!(j in [0 1 2 3] {
        let low = b.transpose_32(offset_of!(Q5_K, qs) + 32 * j);
        unrolled!(n in [0 1] {
            let (scale, min) = k.get(2 * j + n);
            let q = vectors!(s in 8 => vorrq_u8(field(low[s], 4 * n, 15), bit(high[s], 2 * j + n, 4)));
            unsigned::<8, 5>(out, b.quarter, 8 * i + 2 * j + n, q, scale, min);
        });
    });
}

#[inline]
#[target_feature(enable = "neon")]
fn q6_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q6_K, d));
    for h in 0..2 {
        let high = b.transpose_32(offset_of!(Q6_K, qh) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            // Four groups' scales are in one word.
            let v = b.words(offset_of!(Q6_K, scales) + 8 * h + j / 2 * 4);
            let low = b.transpose_32(offset_of!(Q6_K, ql) + 64 * h + j % 2 * 32);
            unrolled!(part in [0 1] {
                let scale = vmulq_f32(d, signed_byte(v, 2 * (j % 2) + part));
                let q = vectors!(s in 4 => {
                    let upper = field(high[4 * part + s], 2 * j, 3);
                    vsliq_n_u8::<4>(field(low[4 * part + s], j / 2 * 4, 15), upper)
                });
                let group = 16 * i + 8 * h + 2 * j + part;
                unsigned::<4, 6>(out, b.quarter, group, q, scale, shifted(Dtype::Q6_K, scale));
            });
        });
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn iq4_xs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    const { assert!(offset_of!(IQ4_XS, scales_h) == 2 && offset_of!(IQ4_XS, scales_l) == 4) };
    let first = b.words(0);
    let low = b.words(offset_of!(IQ4_XS, scales_l));
    let [d, _] = halves(first);
    unrolled!(g in [0 1 2 3 4 5 6 7] {
        let q = iq4(b, offset_of!(IQ4_XS, qs) + 16 * g);
        let scale = vsliq_n_u32::<4>(bits(low, 4 * g, 4), bits(first, 16 + 2 * g, 2));
        let scale = vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(scale), vdupq_n_s32(32)));
        signed(out, b.quarter, 8 * i + g, q, vmulq_f32(d, scale));
    });
}

/// Hands columns `first..first + n` of rows of floats to `out`, which counts them from 0.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::arm) fn columns<const P: bool>(
    dtype: Dtype,
    rows: &Rows<'_, P>,
    first: usize,
    n: usize,
    out: &mut impl FloatColumns,
) {
    let upper = |v| vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(v), vdupq_n_u32(0xffff_0000)));
    let lower = |v| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_u8(v)));
    let bf16 = |v| vreinterpretq_f32_u32(vshll_n_u16::<16>(v));
    match dtype {
        Dtype::F32 => {
            let eight = |b: Block<'_, P>| {
                let [c0, c1, c2, c3, c4, c5, c6, c7] = b.transpose_32(0);
                let f = |v| vreinterpretq_f32_u8(v);
                [f(c0), f(c1), f(c2), f(c3), f(c4), f(c5), f(c6), f(c7)]
            };
            eights(4, rows, first, n, out, eight, |b| vreinterpretq_f32_u8(b.words(0)));
        }
        Dtype::F16 => {
            let eight = |b: Block<'_, P>| {
                if P {
                    let f = |c: usize| b.floats(2 * c);
                    return [f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)];
                }
                let [c0, c2, c4, c6] = b.transpose(0);
                let ([c0, c1], [c2, c3], [c4, c5], [c6, c7]) = (halves(c0), halves(c2), halves(c4), halves(c6));
                [c0, c1, c2, c3, c4, c5, c6, c7]
            };
            eights(2, rows, first, n, out, eight, |b| b.floats(0));
        }
        Dtype::BF16 => {
            let eight = |b: Block<'_, P>| {
                if P {
                    let f = |c: usize| bf16(b.shorts(2 * c));
                    return [f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)];
                }
                let [c0, c2, c4, c6] = b.transpose(0);
                [lower(c0), upper(c0), lower(c2), upper(c2), lower(c4), upper(c4), lower(c6), upper(c6)]
            };
            eights(2, rows, first, n, out, eight, |b| bf16(b.shorts(0)));
        }
        _ => unreachable!("{dtype} has quants"),
    }
}

/// Walks columns of `size` bytes by eights with `eight`, and what is left of them with `one`.
#[inline]
#[target_feature(enable = "neon")]
fn eights<'a, const P: bool, S: FloatColumns>(
    size: usize,
    rows: &'a Rows<'a, P>,
    first: usize,
    n: usize,
    out: &mut S,
    eight: impl Fn(Block<'a, P>) -> [float32x4_t; 8],
    one: impl Fn(Block<'a, P>) -> float32x4_t,
) {
    for c in (0..n / 8 * 8).step_by(8) {
        let at = (first + c) * size;
        if S::STREAMS {
            rows.ahead(at, 8 * size);
        }
        // As a macro, for the compiler may leave a closure apart.
        macro_rules! hand {
            ($quarter:ident) => {
                let columns = eight(Block::new(rows, at, 8 * size, $quarter));
                for i in 0..8 {
                    // SAFETY: the column is below `n`, and this function runs on processors with NEON only.
                    unsafe { out.take($quarter, c + i, columns[i]) };
                }
            };
        }
        if S::STREAMS {
            // With constants, sums stay in registers.
            unrolled!(quarter in [0 1 2 3] {
                hand!(quarter);
            });
        } else {
            for quarter in 0..4 {
                hand!(quarter);
            }
        }
    }
    for c in n / 8 * 8..n {
        unrolled!(quarter in [0 1 2 3] {
            // SAFETY: as above.
            unsafe { out.take(quarter, c, one(Block::new(rows, (first + c) * size, size, quarter))) };
        });
    }
}
