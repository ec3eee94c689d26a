//! Quantized blocks, SIMD kernels and the thread team of mmq.
//!
//! Slices in, slices out: nothing here knows a file, a tensor name or a model.
//! The scalar kernels are complete and are the specification; each instruction set
//! overrides entries of the [`Kernels`] table, which is chosen once at run time.

/// A loop that the compiler leaves one: its turns written out would be tens of kilobytes for each type and caller, and are no
/// faster where looking up points takes most of the time.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
macro_rules! rolled {
    ($i:ident in 0..$n:literal $body:block) => {
        for $i in 0..std::hint::black_box($n) $body
    };
}

#[cfg(target_arch = "aarch64")]
pub mod arm;
pub mod attention;
pub mod block;
mod cache;
pub mod cores;
pub mod grid;
pub mod interleave;
pub mod kv;
pub mod matmul;
pub mod panel;
pub mod quantize;
pub mod round;
pub mod scalar;
pub mod stop;
pub mod table;
pub mod team;
#[cfg(target_arch = "x86_64")]
pub mod x86;

pub use attention::{Attention, Kv, attention, attention_with};
pub use block::Dtype;
pub use kv::{KvTiles, KvType, Side};
pub use matmul::{Activations, Input, Layout, Norm, Product, Then, Weights, matmul};
pub use quantize::Search;
pub use stop::{stopped, until};
pub use table::{Kernels, Level, kernels, levels};
pub use team::{Manners, Team};
