//! The sets of points that the IQ1, IQ2 and IQ3 formats choose from: eight weights at a time, or four.
//!
//! A point has 8 digits to base 3 (IQ1, IQ2) or 4 to base 8 (IQ3), one for each weight; read as a number, the first digit
//! is the lowest. Of all these points a format has some, and its codes number those in ascending order. `grids.bin` holds a
//! set as one bit for each possible point, which is all that there is to know: 820 bytes for IQ2_XXS, IQ2_XS, IQ2_S and
//! IQ1, 512 for IQ3_XXS and IQ3_S, in this order. It is written by `grids.py`.

/// Bytes of a set of 8 digits, and of one of 4.
const EIGHTS: usize = 3_usize.pow(8).div_ceil(8);
const FOURS: usize = 8_usize.pow(4).div_ceil(8);

static SETS: &[u8; 4 * EIGHTS + 2 * FOURS] = include_bytes!("grids.bin");

/// What the digits of IQ2 stand for: magnitudes.
pub const IQ2_VALUES: [u8; 3] = [8, 25, 43];
/// What the digits of IQ1 stand for: 8 times −1, 0 and 1, with 8 added.
pub const IQ1_VALUES: [u8; 3] = [0, 8, 16];
/// What the digits of IQ3_XXS stand for: halves of magnitudes.
pub const IQ3_XXS_VALUES: [u8; 8] = [2, 6, 10, 14, 18, 22, 26, 31];
/// What the digits of IQ3_S stand for: magnitudes.
pub const IQ3_S_VALUES: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// The points of IQ2_XXS by code: [`IQ2_VALUES`], the first weight's in the lowest byte.
pub static IQ2_XXS: [u64; 256] = eights(0, IQ2_VALUES);
/// As [`IQ2_XXS`].
pub static IQ2_XS: [u64; 512] = eights(1, IQ2_VALUES);
/// As [`IQ2_XXS`].
pub static IQ2_S: [u64; 1024] = eights(2, IQ2_VALUES);
/// The points of IQ1_S and IQ1_M by code: [`IQ1_VALUES`], the first weight's in the lowest byte.
pub static IQ1: [u64; 2048] = eights(3, IQ1_VALUES);
/// The points of IQ3_XXS by code: [`IQ3_XXS_VALUES`], the first weight's in the lowest byte.
pub static IQ3_XXS: [u32; 256] = fours(0, IQ3_XXS_VALUES);
/// The points of IQ3_S by code: [`IQ3_S_VALUES`], the first weight's in the lowest byte.
pub static IQ3_S: [u32; 512] = fours(1, IQ3_S_VALUES);

/// Set `index` of those of 8 digits.
const fn eights<const N: usize>(index: usize, values: [u8; 3]) -> [u64; N] {
    points(index * EIGHTS, 8, &values)
}

/// Set `index` of those of 4 digits.
const fn fours<const N: usize>(index: usize, values: [u8; 8]) -> [u32; N] {
    let wide: [u64; N] = points(4 * EIGHTS + index * FOURS, 4, &values);
    let mut narrow = [0; N];
    let mut i = 0;
    while i < N {
        narrow[i] = wide[i] as u32;
        i += 1;
    }
    narrow
}

/// The set at byte `at` of [`SETS`], of `digits` digits that stand for `values`.
const fn points<const N: usize>(at: usize, digits: u32, values: &[u8]) -> [u64; N] {
    let mut out = [0; N];
    let mut found = 0;
    let mut point = 0;
    while point < values.len().pow(digits) {
        if SETS[at + point / 8] >> (point % 8) & 1 == 1 {
            let mut rest = point;
            let mut i = 0;
            while i < digits {
                out[found] |= (values[rest % values.len()] as u64) << (8 * i);
                rest /= values.len();
                i += 1;
            }
            found += 1;
        }
        point += 1;
    }
    assert!(found == N);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_have_the_first_weight_in_the_lowest_byte() {
        assert_eq!(IQ2_XXS[0].to_le_bytes(), [8; 8]);
        assert_eq!(IQ2_XXS[1].to_le_bytes(), [43, 8, 8, 8, 8, 8, 8, 8]);
        assert_eq!(IQ1[2047].to_le_bytes(), [16; 8]);
        assert_eq!(IQ3_XXS[1].to_le_bytes(), [10, 2, 2, 2]);
        assert_eq!(IQ3_S[1].to_le_bytes(), [3, 1, 1, 1]);
    }
}
