//! What is drawn where.

use super::canvas::overlap;
use super::layout::{Layout, PALETTE};
use super::*;

fn grey(width: usize, height: usize) -> Image {
    Image { width, height, rgb: vec![0x80; width * height * 3] }
}

fn pixel(image: &Image, x: usize, y: usize) -> [u8; 3] {
    let at = (y * image.width + x) * 3;
    [image.rgb[at], image.rgb[at + 1], image.rgb[at + 2]]
}

#[test]
fn frames_lie_on_the_edges_of_boxes() {
    // 2 pixels wide: one to each side of the edge, then a shadow.
    let mut image = grey(300, 200);
    draw(&mut image, &[Mark { label: "", points: &[[50.0, 40.0], [250.0, 160.0]] }]);
    for (x, y, is) in [
        (49, 100, true),
        (50, 100, true),
        (249, 100, true),
        (250, 100, true),
        (150, 39, true),
        (150, 40, true),
        (150, 159, true),
        (150, 160, true),
        (50, 40, true),
        (52, 100, false),
        (150, 100, false),
        (247, 100, false),
    ] {
        let expected = if is { PALETTE[0] } else { [0x80; 3] };
        assert_eq!(pixel(&image, x, y), expected, "{x}, {y}");
    }
    for x in [48, 51, 248, 251] {
        let [r, g, b] = pixel(&image, x, 100);
        assert!(r == g && g == b && r < 0x80, "the shadow at {x} is {r} {g} {b}");
    }
    assert_eq!(pixel(&image, 46, 100), [0x80; 3]);
}

#[test]
fn frames_of_quadrangles_follow_their_sides() {
    let mut image = grey(300, 300);
    draw(&mut image, &[Mark { label: "", points: &[[150.0, 50.0], [250.0, 150.0], [150.0, 250.0], [50.0, 150.0]] }]);
    for (x, y) in [(200, 100), (100, 100), (100, 200), (199, 199)] {
        let near = (-1..=1i32).flat_map(|dx| (-1..=1i32).map(move |dy| (dx, dy)));
        let mut near = near.map(|(dx, dy)| pixel(&image, (x + dx) as usize, (y + dy) as usize));
        assert!(near.any(|rgb| rgb == PALETTE[0]), "{x}, {y}");
    }
    assert_eq!(pixel(&image, 150, 150), [0x80; 3]);
    assert_eq!(pixel(&image, 60, 60), [0x80; 3]);
}

#[test]
fn equal_labels_have_equal_colours() {
    let points = [[1.0, 1.0], [9.0, 9.0]];
    let marks = ["cat", "dog", "cat"].map(|label| Mark { label, points: &points });
    let layout = Layout::new((100, 100), &marks, &["cat", "dog", "cat"].map(String::from));
    assert_eq!(layout.colors, [PALETTE[0], PALETTE[1], PALETTE[0]]);
}

#[test]
fn plates_stay_inside_and_apart() {
    // Boxes in all corners, in the middle, and three in one place.
    let boxes = [
        [[0.0, 0.0], [200.0, 150.0]],
        [[1000.0, 0.0], [1200.0, 100.0]],
        [[0.0, 700.0], [100.0, 800.0]],
        [[1100.0, 750.0], [1200.0, 800.0]],
        [[400.0, 300.0], [700.0, 600.0]],
        [[400.0, 300.0], [700.0, 600.0]],
        [[400.0, 300.0], [700.0, 600.0]],
    ];
    let marks = boxes.each_ref().map(|points| Mark { label: "a fairly long label", points });
    let texts = marks.map(|mark| mark.label.to_owned());
    let layout = Layout::new((1200, 800), &marks, &texts);
    let rects: Vec<Rect> = layout.plates.iter().flatten().map(|plate| plate.rect).collect();
    assert_eq!(rects.len(), marks.len());
    for (i, rect) in rects.iter().enumerate() {
        assert!(rect[0] >= 0.0 && rect[1] >= 0.0 && rect[2] <= 1200.0 && rect[3] <= 800.0, "{rect:?}");
        for other in &rects[..i] {
            assert_eq!(overlap(*rect, *other), 0.0, "{rect:?} and {other:?}");
        }
    }
}

#[test]
fn labels_are_cut_or_numbered() {
    let mark = Mark { label: "x", points: &[[0.0, 0.0], [50.0, 50.0]] };
    let long = ["a label that is much too long for a picture".to_owned()];
    let layout = Layout::new((120, 120), &[mark], &long);
    let plate = layout.plates[0].as_ref().unwrap();
    assert!(plate.text.ends_with('…') && plate.text.starts_with("a label"), "{}", plate.text);
    assert!(plate.rect[2] <= 120.0);
    assert_eq!(drawable(2, "一只猫"), "#3");
    assert_eq!(drawable(2, " Straße\nnach Łódź "), "Straße nach Łódź");
    assert!(can_write("Кот") && !can_write("猫"));
}

#[test]
fn any_place_in_any_picture_can_be_drawn() {
    for (width, height) in [(1, 1), (1, 300), (7, 5), (64, 64), (400, 3)] {
        let (w, h) = (width as f64, height as f64);
        let shapes: [&[[f64; 2]]; 5] = [
            &[[0.0, 0.0], [w, h]],
            &[[w, h], [w, h]],
            &[[0.0, 0.0], [0.0, h]],
            &[[0.0, 0.0], [w, 0.0], [w, h], [0.0, h]],
            &[],
        ];
        let marks = shapes.map(|points| Mark { label: "label", points });
        let mut image = grey(width, height);
        draw(&mut image, &marks);
        assert_eq!(image.rgb.len(), width * height * 3);
        assert!(svg(&image, &marks).unwrap().ends_with("</svg>\n"));
    }
}
