"""Pictures of signs: a printed number or word, a coloured shape, or both, on a pale ground.

A picture is drawn at the resolution at which the encoder will see it and then shrunk, so that the
reference image processor enlarges it again. Most fill part of one 448-pixel crop (the rest is
padding); a quarter needs two crops. Nothing straddles the border between two crops.

What is held out: the fonts, a band of letter sizes, the shades within each colour.
"""

import colorsys
import math
from dataclasses import dataclass, field
from functools import lru_cache

from data_text import answer_about
from PIL import Image, ImageDraw, ImageFont
from vocabulary import COLORS, PICTURE_QUESTIONS, SHAPES, SIGN_WORDS

CROP = 448  # pixels, side of a crop
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# what is printed: digits twice as often, and the letters of the words (the others never occur)
PRINTED = "0123456789" * 2 + "".join(sorted(set("".join(SIGN_WORDS).upper())))
# Debian packages fonts-dejavu and fonts-freefont-ttf; held out: fonts-liberation
FONTS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansCondensed-Bold.ttf", "FreeSans.ttf",
    "FreeSansBold.ttf",
)  # fmt: skip
HELD_OUT_FONTS = ("LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf")
# colour -> centre and half-width of its hue (degrees), range of saturation, range of value
SHADES = {
    "red": (0, 6, (0.8, 1.0), (0.75, 0.95)),
    "orange": (30, 6, (0.85, 1.0), (0.9, 1.0)),
    "yellow": (56, 5, (0.8, 1.0), (0.9, 1.0)),
    "green": (125, 18, (0.6, 1.0), (0.4, 0.8)),
    "blue": (222, 14, (0.7, 1.0), (0.55, 1.0)),
    "purple": (280, 9, (0.55, 0.95), (0.45, 0.75)),
    "pink": (332, 8, (0.35, 0.55), (0.95, 1.0)),
    "black": (0, 180, (0.0, 0.3), (0.0, 0.12)),
}


@dataclass
class Mark:
    """One glyph or shape: its centre and box in canvas pixels, what it is, its colour index."""

    x: float
    y: float
    box: tuple
    kind: int  # index in LETTERS, or len(LETTERS) + index in SHAPES
    color: int = -1  # index in COLORS; -1 for letters


@dataclass
class Scene:
    """A drawn picture (RGB), the facts in it, and the marks for the encoder's own objective."""

    picture: Image.Image
    facts: dict = field(default_factory=dict)
    marks: list = field(default_factory=list)

    def questions(self):
        """Kinds of question this picture answers."""
        return [*self.facts, *(["both"] if "color" in self.facts else [])]


def shade(name, rng, held_out=False):
    """An RGB triple of a colour; the middle fifth of its hues is held out."""
    hue, width, saturation, value = SHADES[name]
    part = rng.uniform(-0.2, 0.2) if held_out else rng.choice((-1, 1)) * rng.uniform(0.2, 1)
    s, v = rng.uniform(*saturation), rng.uniform(*value)
    rgb = colorsys.hsv_to_rgb(((hue + part * width) % 360) / 360, s, v)
    return tuple(round(255 * c) for c in rgb)


def ground(rng):
    """A pale background."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.12), rng.uniform(0.88, 1.0))
    return tuple(round(255 * c) for c in rgb)


def ink(rng):
    """A dark colour for letters."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 1), rng.uniform(0, 0.45))
    return tuple(round(255 * c) for c in rgb)


@lru_cache(maxsize=512)
def font(name, height):
    """The font whose capitals are ``height`` pixels high."""
    probe = ImageFont.truetype(name, 100)
    box = probe.getbbox("H")
    return ImageFont.truetype(name, round(100 * height / (box[3] - box[1])))


def text_marks(text, name, height):
    """Letters side by side from (0, 0): list of Marks (y is the middle of a line), and the size.

    Letters stand at least 31 pixels apart, so that each has a 28-pixel cell of its own.
    """
    face, x, marks = font(name, height), 0.0, []
    for letter in text:
        advance = face.getlength(letter)
        room = max(advance * 1.02, 31.0)
        box = (x, 0, x + room, height)
        marks.append(Mark(x + room / 2, height / 2, box, LETTERS.index(letter)))
        x += room
    return marks, (math.ceil(x), height)


def draw_text(draw, marks, name, height, color, left, top):
    """Draw ``marks`` with their line's top left corner at (left, top); return them moved there."""
    face, moved = font(name, height), []
    base = face.getbbox("H")[1]
    for m in marks:
        letter = LETTERS[m.kind]
        x = left + m.x - face.getlength(letter) / 2
        draw.text((x, top - base), letter, font=face, fill=color)
        box = (m.box[0] + left, m.box[1] + top, m.box[2] + left, m.box[3] + top)
        moved.append(Mark(m.x + left, m.y + top, box, m.kind))
    return moved


def outline(shape, r):
    """Corners of a shape of radius ``r`` about (0, 0); a circle has 60."""
    turn = lambda n, a=-90: [(math.radians(a + 360 * i / n)) for i in range(n)]  # noqa: E731
    if shape == "circle":
        return [(r * math.cos(a), r * math.sin(a)) for a in turn(60)]
    if shape == "square":
        return [(1.2 * r * math.cos(a), 1.2 * r * math.sin(a)) for a in turn(4, 45)]
    if shape == "diamond":
        return [(0.75 * r * math.cos(a), 1.15 * r * math.sin(a)) for a in turn(4)]
    if shape == "triangle":
        return [(1.1 * r * math.cos(a), 1.1 * r * math.sin(a) + 0.2 * r) for a in turn(3)]
    if shape == "star":
        radii = (1.1 * r, 0.45 * r)
        return [(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a))
                for i, a in enumerate(turn(10))]  # fmt: skip
    w = 0.34 * r
    corners = [(w, r), (w, w), (r, w), (r, -w), (w, -w), (w, -r)]
    return corners + [(-x, -y) for x, y in corners]


def draw_shape(picture, shape, color, x, y, r, tilt=0.0):
    """Paint a shape with smooth edges, its centre at (x, y)."""
    side, over = math.ceil(2.6 * r), 3
    mask = Image.new("L", (side * over, side * over))
    c, s = math.cos(tilt), math.sin(tilt)
    middle = side / 2
    points = [((px * c - py * s + middle) * over, (px * s + py * c + middle) * over) for px, py in outline(shape, r)]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    mask = mask.resize((side, side), Image.Resampling.BOX)
    picture.paste(color, (round(x - side / 2), round(y - side / 2)), mask)


def canvas_size(rng):
    """Width and height in the encoder's pixels: one side fills its crops exactly."""
    style = rng.random()
    if style < 0.5:
        return CROP, rng.randint(150, 300)
    if style < 0.6:
        return CROP, rng.randint(300, CROP)
    if style < 0.75:
        return rng.randint(200, 400), CROP
    if style < 0.93:
        return 2 * CROP, rng.randint(150, 260)
    return rng.randint(180, 260), 2 * CROP


def place(rng, size, canvas, taken):
    """A random free top left corner for a box of ``size`` within one crop, or None."""
    crops = [(x, y) for x in range(0, canvas[0], CROP) for y in range(0, canvas[1], CROP)]
    for _ in range(30):
        left, top = rng.choice(crops)
        right, bottom = min(left + CROP, canvas[0]), min(top + CROP, canvas[1])
        if right - left < size[0] + 12 or bottom - top < size[1] + 12:
            continue
        x = rng.uniform(left + 6, right - 6 - size[0])
        y = rng.uniform(top + 6, bottom - 6 - size[1])
        x1, y1 = x + size[0] + 10, y + size[1] + 10
        if all(x > b[2] + 10 or y > b[3] + 10 or x1 < b[0] or y1 < b[1] for b in taken):
            return round(x), round(y)
    return None


def letter_height(rng, held_out):
    """Height of capitals in pixels: 44 to 60 but for the band 50 to 54, which is held out."""
    return rng.randint(50, 54) if held_out else rng.choice((*range(44, 50), *range(55, 61)))


def printed_text(rng):
    """``(kind, text)``: a number of one digit, or a word.

    Of longer numbers the model names the digits in the wrong order; the letters of a word tell it in any order.
    """
    return ("word", rng.choice(SIGN_WORDS)) if rng.random() < 0.45 else ("number", str(rng.randrange(10)))


def scene(rng, held_out=False):
    """Draw one picture."""
    content = rng.random()
    kind, text = printed_text(rng)
    color, shape = rng.choice(COLORS), rng.choice(SHAPES)
    while True:
        canvas, height = canvas_size(rng), letter_height(rng, held_out)
        name = rng.choice(HELD_OUT_FONTS if held_out else FONTS)
        marks, text_size = text_marks(text.upper(), name, height)
        radius = rng.uniform(30, 58)
        side = math.ceil(2.4 * radius)
        spots, taken = [], []
        for size in (text_size if content < 0.8 else None, (side, side) if content > 0.2 else None):
            spot = place(rng, size, canvas, taken) if size else (0, 0)
            if spot is None:
                break
            spots.append(spot)
            if size:
                taken.append((*spot, spot[0] + size[0], spot[1] + size[1]))
        if len(spots) == 2:
            break
    result = Scene(Image.new("RGB", canvas, ground(rng)))
    if content < 0.8:
        draw = ImageDraw.Draw(result.picture)
        result.marks += draw_text(draw, marks, name, height, ink(rng), *spots[0])
        result.facts[kind] = text
    if content > 0.2:
        x, y = spots[1][0] + side / 2, spots[1][1] + side / 2
        paint = shade(color, rng, held_out)
        draw_shape(result.picture, shape, paint, x, y, radius, rng.uniform(-0.12, 0.12))
        result.marks.append(shape_mark(x, y, radius, shape, color))
        result.facts |= {"color": color, "shape": shape}
    result.picture = shrink(rng, result.picture, height if content < 0.8 else 60)
    return result


def shape_mark(x, y, r, shape, color):
    box = (x - 1.2 * r, y - 1.2 * r, x + 1.2 * r, y + 1.2 * r)
    return Mark(x, y, box, len(LETTERS) + SHAPES.index(shape), COLORS.index(color))


def shrink(rng, picture, height):
    """The picture at a smaller size (letters of 34 pixels or more) with the same count of crops."""
    low = max(0.7, 34 / height)
    for side in picture.size:
        if side > CROP:
            low = max(low, (CROP + 4) / side)
    scale = rng.uniform(low, 1.0)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize(size, Image.Resampling.LANCZOS)


def lines(rng):
    """Spots of a page full of lines: lists of (left, top, letter height or 0 for shapes, room)."""
    top = rng.randint(0, 16)
    while True:
        shapes = rng.random() < 0.25
        height = rng.randint(72, 136) if shapes else letter_height(rng, False)
        if top + height > CROP:
            return
        left = rng.randint(0, 24)
        while left < CROP - 40:
            room = height if shapes else min(rng.randint(35, 400), CROP - left)
            if left + room > CROP:
                break
            yield left, top, 0 if shapes else height, room
            left += room + rng.randint(2, 20)
        top += height + rng.randint(4, 16)


def dense_canvas(rng, held_out=False):
    """A full crop of random letters and shapes, for the encoder's own objective."""
    picture = Image.new("RGB", (CROP, CROP), ground(rng))
    draw, marks, share = ImageDraw.Draw(picture), [], rng.choice((0.2, 1.0, 1.0, 1.0))
    for left, top, height, room in lines(rng):
        if rng.random() > share:
            continue
        if height == 0:
            radius = room / 2.4
            shape, color = rng.choice(SHAPES), rng.choice(COLORS)
            x, y, tilt = left + room / 2, top + room / 2, rng.uniform(-0.12, 0.12)
            draw_shape(picture, shape, shade(color, rng, held_out), x, y, radius, tilt)
            marks.append(shape_mark(x, y, radius, shape, color))
            continue
        height = letter_height(rng, True) if held_out else height
        name = rng.choice(HELD_OUT_FONTS if held_out else FONTS)
        text = "".join(rng.choice(PRINTED) for _ in range(13))
        line, _ = text_marks(text, name, height)
        line = [m for m in line if m.box[2] <= room]
        marks += draw_text(draw, line, name, height, ink(rng), left, top)
    scale = rng.uniform(0.75, 1.0)
    small = picture.resize((round(CROP * scale),) * 2, Image.Resampling.LANCZOS)
    return small.resize((CROP, CROP), Image.Resampling.BILINEAR), marks


def question(rng, facts, asked):
    """``(question, answer)`` about a picture with these facts."""
    return rng.choice(PICTURE_QUESTIONS[asked]), answer_about(facts, asked)
