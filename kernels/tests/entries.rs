//! Which entries of the table each level has kernels of its own for: a level that loses one, or an entry that a level never
//! got, is seen here. With `--nocapture` it prints them.

use mmq_kernels::{Kernels, Level, levels};

/// Names and addresses of all entries, but for `prefetch`, which computes nothing.
fn entries(table: &Kernels) -> Vec<(&'static str, usize)> {
    macro_rules! list {
        ($($name:ident)*) => {{
            let Kernels { level: _, prefetch: _, $($name),* } = *table;
            vec![$((stringify!($name), $name as usize)),*]
        }};
    }
    list!(dequantize unpack unpack_float quantize dot dot_float dot_few dot_few_float rms_norm layer_norm
        silu_mul silu gelu_erf gelu_tanh gelu_quick add sum_exp cross_exp to_f16 rope rope_half from_f16 attend expand_keys
        transpose)
}

#[test]
fn each_level_has_its_kernels() {
    let tables = levels();
    let mut of: Vec<_> = entries(&tables[0]).into_iter().map(|(name, at)| (name, at, vec![Level::Scalar])).collect();
    for table in &tables[1..] {
        for ((_, at, levels), (_, new)) in of.iter_mut().zip(entries(table)) {
            levels.push(if *at == new { levels[levels.len() - 1] } else { table.level });
            *at = new;
        }
    }
    let names = |levels: &[Level]| levels.iter().map(|level| level.name()).collect::<Vec<_>>().join("\t");
    println!("entry\t{}", names(&tables.iter().map(|table| table.level).collect::<Vec<_>>()));
    for (entry, _, levels) in &of {
        println!("{entry}\t{}", names(levels));
        let scalar = tables.len() == 1;
        assert_eq!(scalar, levels.iter().all(|level| *level == Level::Scalar), "{entry} stays scalar");
    }
    for (level, own) in [(Level::Dotprod, &["dot", "dot_few"][..]), (Level::I8mm, &["dot"])] {
        let Some(i) = tables.iter().position(|table| table.level == level) else { continue };
        let found: Vec<_> = of.iter().filter(|(_, _, levels)| levels[i] == level).map(|(entry, ..)| *entry).collect();
        assert_eq!(found, own, "entries of {}", level.name());
    }
}
