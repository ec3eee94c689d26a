//! The order in which a picture's features stand in the prompt, with the newlines between them, and how they are made
//! fewer than the encoder gives.

use super::select::{self, MAX_ROWS};
use crate::ops::Cx;
use crate::{Error, Result, bail};
use std::num::NonZeroUsize;
use std::str::FromStr;

/// How many positions of the prompt a picture may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageTokens {
    /// Most positions of each picture, those of its newlines included.
    pub n: NonZeroUsize,
    /// How a picture that would take more is made to fit.
    pub by: Reduction,
}

/// How image tokens are made fewer. Positions in the prompt are always consecutive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Exactly [`ImageTokens::n`] are kept, in their order: features that the encoder looks at and that are like many of the
    /// others, which are merged into them. Each crop keeps a share in proportion to what it shows of the picture, and so do the
    /// newlines, which stand at even distances.
    #[default]
    Saliency,
    /// As [`Reduction::Saliency`], but all features are taken to be equally salient: for encoders whose attention tells little,
    /// as that of a class token that was never trained.
    Coverage,
    /// The grid of features is averaged to the largest grid of nearly the same proportions that fits. The overview of a tiled
    /// picture and its tiles get shares in proportion.
    Downsample,
}

impl Reduction {
    const ALL: [Reduction; 3] = [Reduction::Saliency, Reduction::Coverage, Reduction::Downsample];

    /// The name that it is parsed from.
    pub fn name(self) -> &'static str {
        match self {
            Reduction::Saliency => "saliency",
            Reduction::Coverage => "coverage",
            Reduction::Downsample => "downsample",
        }
    }
}

impl FromStr for Reduction {
    type Err = Error;

    fn from_str(name: &str) -> Result<Reduction> {
        match Reduction::ALL.into_iter().find(|reduction| reduction.name() == name) {
            Some(reduction) => Ok(reduction),
            None => bail!(Usage, "image tokens by \"{name}\": expected saliency, coverage or downsample"),
        }
    }
}

/// The order of a picture's features: grids, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// The grids.
    pub grids: Vec<Grid>,
}

/// A grid of features, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Newlines, at most one a row: at even distances, the last of them at the end.
    pub n_newline: usize,
    /// Which of the encoder's features they are: `[rows, cols]`.
    pub features: Vec<usize>,
}

/// What a place of the prompt holds: a row of features, or a newline.
pub type Place = Option<usize>;

impl Layout {
    /// Places that it takes.
    pub fn len(&self) -> usize {
        self.grids.iter().map(Grid::len).sum()
    }

    /// Whether it takes none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of its places, in terms of the encoder's features.
    pub fn places(&self) -> Vec<Place> {
        self.grids.iter().flat_map(|grid| grid.places(grid.n_newline, Some)).collect()
    }

    /// Makes the encoder's features `x: [n_crops, n_patch, width]` fewer by `saliency: [n_crops, n_patch]`
    /// ([`Reduction::Saliency`], or [`Reduction::Coverage`] if they are all the same), so that they take `n` places: returns the
    /// rows that are left and the places in terms of them.
    ///
    /// # Panics
    /// If it takes fewer than `n` places as it is, or `n` is 0.
    pub fn select(
        &self,
        cx: &mut Cx<'_>,
        x: &[f32],
        width: usize,
        saliency: &[f32],
        n_patch: usize,
        n: usize,
    ) -> (Vec<f32>, Vec<Place>) {
        assert!((1..=self.len()).contains(&n), "{n} of {} places", self.len());
        let all_newlines: usize = self.grids.iter().map(|grid| grid.n_newline).sum();
        // In proportion; but a picture that ends with a newline goes on to do so, if there is room for more than that.
        let n_newline = (n * all_newlines / self.len()).max(1).min(all_newlines).min(n - 1);

        // Rows of one crop are compared with each other: attention does not tell how crops compare.
        let mut shown: Vec<usize> = self.grids.iter().flat_map(|grid| grid.features.iter().copied()).collect();
        shown.sort_unstable();
        let groups: Vec<&[usize]> =
            shown.chunk_by(|a, b| a / n_patch == b / n_patch).flat_map(|crop| crop.chunks(MAX_ROWS)).collect();
        let sizes: Vec<usize> = groups.iter().map(|group| group.len()).collect();

        let mut rows = Vec::with_capacity((n - n_newline) * width);
        let mut row_of = vec![None; saliency.len()];
        for (group, n) in groups.iter().zip(select::shares(n - n_newline, &sizes)).filter(|(_, n)| *n > 0) {
            let features: Vec<f32> = group.iter().flat_map(|i| &x[i * width..][..width]).copied().collect();
            let saliency: Vec<f32> = group.iter().map(|i| saliency[*i]).collect();
            let selection = select::select(cx, &features, width, &saliency, n);
            for (i, kept) in selection.kept.iter().enumerate() {
                row_of[group[*kept]] = Some(rows.len() / width + i);
            }
            rows.extend(selection.merge(&features, width));
        }
        let newlines = select::shares(n_newline, &self.grids.iter().map(|grid| grid.n_newline).collect::<Vec<_>>());
        let grids = self.grids.iter().zip(newlines);
        (rows, grids.flat_map(|(grid, n_newline)| grid.places(n_newline, |i| row_of[i])).collect())
    }

    /// Makes the encoder's features `x: [.., width]` fewer by [`Reduction::Downsample`], so that they take at most `n` places:
    /// returns the rows that are left and the places in terms of them.
    ///
    /// # Panics
    /// If it takes fewer than `n` places as it is, or `n` is 0.
    pub fn downsample(&self, x: &[f32], width: usize, n: usize) -> (Vec<f32>, Vec<Place>) {
        let mut shares = select::shares(n, &self.grids.iter().map(Grid::len).collect::<Vec<_>>());
        if shares[0] == 0 {
            // The overview comes before any detail.
            *shares.iter_mut().max().expect("there is a grid") -= 1;
            shares[0] = 1;
        }
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        for (grid, n) in self.grids.iter().zip(shares) {
            let to = select::coarser(n, grid.rows, grid.cols, grid.n_newline);
            let Some(to) = to.or((places.is_empty() && n > 0).then_some((1, 1))) else { continue };
            let features: Vec<f32> = grid.features.iter().flat_map(|i| &x[i * width..][..width]).copied().collect();
            let first = rows.len() / width;
            rows.extend(select::pool(&features, (grid.rows, grid.cols), width, to));
            let n_newline = (to.0 * grid.n_newline).div_ceil(grid.rows).min(n - to.0 * to.1);
            let coarse = Grid { rows: to.0, cols: to.1, n_newline, features: (first..rows.len() / width).collect() };
            places.extend(coarse.places(n_newline, Some));
        }
        (rows, places)
    }
}

impl Grid {
    fn len(&self) -> usize {
        self.features.len() + self.n_newline
    }

    /// Its places with `n_newline` newlines and only the features that `of` gives a row for.
    fn places(&self, n_newline: usize, of: impl Fn(usize) -> Place) -> Vec<Place> {
        let mut places = Vec::new();
        for row in 0..self.rows {
            places.extend(self.features[row * self.cols..][..self.cols].iter().filter_map(|i| of(*i)).map(Some));
            let newlines = |rows: usize| rows * n_newline / self.rows;
            places.extend((newlines(row)..newlines(row + 1)).map(|_| None));
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Cpu;
    use mmq_kernels::Activations;

    const N_PATCH: usize = 36;
    const WIDTH: usize = 10;

    fn crop(i: usize, n_newline: usize) -> Grid {
        Grid { rows: 6, cols: 6, n_newline, features: (i * N_PATCH..(i + 1) * N_PATCH).collect() }
    }

    /// One crop; one with a newline at its end; crops without newlines; an overview and 2 x 1 tiles, two rows of which show
    /// padding; tiles that show nothing.
    fn layouts() -> [Layout; 5] {
        let tile = |row: usize, col: usize| (1 + col / 6) * N_PATCH + row * 6 + col % 6;
        let features = (1..5).flat_map(|row| (0..12).map(move |col| tile(row, col))).collect();
        let tiles = Grid { rows: 4, cols: 12, n_newline: 4, features };
        let nothing = Grid { rows: 6, cols: 0, n_newline: 6, features: Vec::new() };
        [
            vec![crop(0, 0)],
            vec![crop(0, 1)],
            vec![crop(0, 0), crop(1, 0), crop(2, 0)],
            vec![crop(0, 0), tiles],
            vec![crop(0, 0), nothing],
        ]
        .map(|grids| Layout { grids })
    }

    /// Features of three crops whose last value is their number, and saliencies.
    fn features() -> (Vec<f32>, Vec<f32>) {
        let noise = |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 24) as f32;
        let mut x: Vec<f32> = (0..3 * N_PATCH * WIDTH).map(noise).collect();
        x.chunks_exact_mut(WIDTH).enumerate().for_each(|(i, row)| row[WIDTH - 1] = i as f32 / 1000.0);
        (x, (0..3 * N_PATCH).map(|i| noise(i + 5000)).collect())
    }

    fn keep(layout: &Layout, n: usize) -> (Vec<f32>, Vec<Place>) {
        let (x, saliency) = features();
        let cpu = Cpu::new(Some(2));
        layout.select(&mut Cx::new(&cpu, &mut Activations::default()), &x, WIDTH, &saliency, N_PATCH, n)
    }

    /// Every row has one place.
    fn assert_complete(rows: &[f32], places: &[Place]) {
        let mut used: Vec<usize> = places.iter().flatten().copied().collect();
        used.sort_unstable();
        assert_eq!(used, (0..rows.len() / WIDTH).collect::<Vec<_>>());
    }

    #[test]
    fn all_places_are_in_order() {
        let places = layouts().map(|layout| layout.places());
        assert_eq!(places[0], (0..36).map(Some).collect::<Vec<_>>());
        assert_eq!(places[1], (0..36).map(Some).chain([None]).collect::<Vec<_>>());
        assert_eq!(places[2], (0..108).map(Some).collect::<Vec<_>>());
        let row: Vec<Place> = (42..48).chain(78..84).map(Some).chain([None]).collect();
        assert_eq!(places[3][..36], places[0]);
        assert_eq!((&places[3][36..49], places[3].len()), (row.as_slice(), 36 + 4 * 13));
        assert_eq!(places[4][36..], [None; 6]);
    }

    #[test]
    fn the_salient_take_exactly_what_they_may() {
        for layout in layouts() {
            let (all, n_newline) = (layout.len(), layout.places().iter().filter(|place| place.is_none()).count());
            for n in 1..=all {
                let (rows, places) = keep(&layout, n);
                assert_eq!(places.len(), n);
                assert_complete(&rows, &places);
                let newlines = places.iter().filter(|place| place.is_none()).count();
                assert!(newlines.abs_diff(n * n_newline / all) <= 1 && newlines <= n_newline, "{newlines} of {n}");
                assert!(n == 1 || n_newline == 0 || places[n - 1].is_none(), "{n}");
            }
            let (x, _) = features();
            let expected: Vec<_> =
                layout.places().iter().map(|place| place.map(|i| &x[i * WIDTH..][..WIDTH])).collect();
            let (rows, places) = keep(&layout, all);
            let kept: Vec<_> = places.iter().map(|place| place.map(|i| &rows[i * WIDTH..][..WIDTH])).collect();
            assert_eq!(kept, expected);
        }
    }

    #[test]
    fn each_crop_has_its_share_in_order() {
        let (rows, places) = keep(&layouts()[2], 27);
        assert_eq!(places, (0..27).map(Some).collect::<Vec<_>>());
        assert_eq!(rows.len(), 27 * WIDTH);
        // 36 + 48 patches and 4 newlines to 22: one newline and 9 + 12 patches, rows of the two tiles in turns.
        let (rows, places) = keep(&layouts()[3], 22);
        assert_eq!(places[..9], (0..9).map(Some).collect::<Vec<_>>());
        assert_eq!((rows.len(), places[21]), (21 * WIDTH, None));
        let tiles: Vec<usize> = places[9..21].iter().flatten().copied().collect();
        for tile in [9..15, 15..21] {
            let of_tile: Vec<usize> = tiles.iter().copied().filter(|row| tile.contains(row)).collect();
            assert_eq!(of_tile, tile.collect::<Vec<_>>());
        }
    }

    #[test]
    fn downsampled_pictures_fit() {
        let (x, _) = features();
        for layout in layouts() {
            for n in 1..layout.len() {
                let (rows, places) = layout.downsample(&x, WIDTH, n);
                assert!((1..=n).contains(&places.len()), "{} of {n}", places.len());
                assert!(places[0].is_some());
                assert_complete(&rows, &places);
            }
        }
        let (rows, places) = layouts()[0].downsample(&x, WIDTH, 18);
        assert_eq!(rows, select::pool(&x[..36 * WIDTH], (6, 6), WIDTH, (4, 4)));
        assert_eq!(places.len(), 16);
        // The overview to 3 x 3, and the tiles to 2 x 6 with newlines.
        let (_, places) = layouts()[3].downsample(&x, WIDTH, 24);
        let newlines: Vec<usize> = (0..places.len()).filter(|i| places[*i].is_none()).collect();
        assert_eq!((places.len(), newlines), (23, vec![15, 22]));
    }

    #[test]
    fn reductions_have_names() {
        for reduction in Reduction::ALL {
            assert_eq!(reduction.name().parse::<Reduction>().unwrap(), reduction);
        }
        let error = "box".parse::<Reduction>().unwrap_err().to_string();
        assert!(error.contains("box") && error.contains("coverage"), "{error}");
    }
}
