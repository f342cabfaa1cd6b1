"""Noun phrases that stand for each kind of picture inside an instruction: our own words, kept as text to be read aloud.

A phrase starts with a lower-case article, has no comma, and does not end in a verb that would take the following "into"
or "to" for its own, so that "turns [IMAGE1] <phrase>, [IMAGE2] <phrase> and [IMAGE3] <phrase> into [IMAGE4] <phrase>"
stays readable. `|` separates phrases; the order matters: a draw is an index.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_TEXT = """
image
    a high-quality photo | a clear natural-looking picture | a full-colour photograph | a realistic picture
    a detailed photo with natural colours | a sharp and complete image
reference
    a reference photo of the subject | a picture that shows what the main subject looks like
    a second photo of the same subject | an appearance reference for the main object
    a separate picture of the subject

canny
    a Canny edge map | a black picture with its edges drawn as thin white lines
    a binary edge map made with the Canny detector | a map of crisp and thin edges
    a thin white outline drawing of the edges on black
hed
    a soft edge map | an HED boundary map | a map of soft and thick object boundaries
    a sketch-like edge picture with graded contours | a grey map of smooth outlines on black
lineart
    a line drawing | a picture of light pencil lines on black | an artist's line art of the scene
    a drawing of contours and fine inner lines
scribble
    a rough scribble | a few thick white strokes on black | a hand-drawn sketch of the main contours
    a crude outline drawn with a thick pen
lines
    a map of straight line segments | a wireframe of the straight lines in the scene | a line-segment drawing
    a black picture crossed by the straight edges of the scene | a drawing of the straight structural lines
depth
    a depth map | a grey map of how near everything is | a relative depth map that is bright where things are near
    a picture of distances in shades of grey | a greyscale depth estimate
normal
    a surface normal map | a picture whose colours give the direction each surface faces
    a colour-coded map of surface orientation | a map of surface normals as RGB colours
    a normal map of the scene
pose
    a human pose skeleton | a stick-figure drawing of the body joints | a pose map of coloured limbs on black
    a drawing of body keypoints joined by limbs | a picture of coloured body skeletons
semantic
    a semantic segmentation map | a label map that gives every class its own colour
    a picture in which each region is coloured by what it is | a colour-coded map of things and surroundings
    a flatly coloured map of semantic classes
clothes
    a clothing parsing map | a label map of garments and body parts | a picture that gives every garment its own colour
    a colour-coded map of what the person wears
segments
    a map of segments in different colours | a segmentation without class names
    a picture made up of flat regions of arbitrary colour | a patchwork of coloured segments that follow the objects
    a class-free segmentation map
mask
    a mask of the named objects | an object mask with one flat colour for each named object
    a picture of coloured object silhouettes | a map that marks where the named objects are
    a coloured mask of the objects that were asked for
boxes
    a drawing of bounding boxes | a layout of boxes around the named objects
    a picture of coloured rectangles that mark the objects | a bounding-box map of the objects
    a box layout that gives the place and size of each object
text_lines
    a layout of the lines of text | a drawing of boxes around the written words | a map of where text is written
    a picture of rectangles that mark lines of text
flow
    an optical flow map | a map of motion whose hues are directions | a picture that shows where each pixel moves
    a colour-coded map of movement between two pictures
foreground_mask
    a foreground mask | a black-and-white mask of the main subject | a white silhouette of the subject on black
    a binary mask that separates the subject from its background | a cut-out mask of the foreground
foreground
    a photo of the subject alone on black | a cut-out of the main subject | a picture in which only the subject is left
    the isolated foreground on a black background | an image with everything but the subject blacked out
background
    a photo with the subject blacked out | a picture of the surroundings only | a scene whose main subject was cut out
    the background with a black gap in the shape of the subject | an image in which only the background is left
inpaint_box
    a white box on black that marks what to paint | a mask with one white rectangle to be filled in
    a rectangular inpainting mask | a black picture whose white box is the area to repaint
inpaint_brush
    a brush mask that marks what to paint | a free-form inpainting mask | a map of strokes to be filled in
    a black picture whose white strokes are the area to repaint
inpaint_random
    an irregular inpainting mask | a mask of white patches to be filled in | a map of white patches to repaint
    a black picture whose white patches are the area to repaint
masked_box
    a photo with a grey box over a part of it | a picture that lacks a rectangular part
    an image with a rectangle left blank | a photo whose boxed area is missing
masked_brush
    a photo with grey brush strokes over it | a picture with freehand strokes left blank
    an image with a painted-over area to be filled in | a photo whose brushed area is missing
masked_random
    a photo with irregular patches left blank | a picture with grey patches over it | an image with irregular gaps
    a photo whose patches are missing
tile
    a very small version of the photo enlarged again | a photo without any fine detail left
    a rough blurry guide picture | an enlarged thumbnail that needs its detail back

style_reference
    an example of the wanted style | a picture that sets the artistic style | a style reference
    a sample of the wanted look | an artwork whose colours and strokes set the style
style_content
    a stylised picture that keeps content and layout | a picture in the new style with every object in its old place
    a restyled image with an unchanged composition | the same content and layout redrawn in the example's style
    a style-transferred image with its content and layout left alone
style_semantic
    a stylised picture of the same subject in a freer layout | a free variation of the subject in the example's style
    a restyled image that keeps the meaning but not the exact layout | the same subject newly composed in the new style
    a loosely arranged picture of the same things in the example's style
edit_local
    a picture with the main object replaced and the background unchanged
    an edited photo that shows another object in the same surroundings | a copy of the scene with another main object
    an image with another main object and the same background
    an edited image that puts a different object in front of the old background
edit_global
    a picture of the same subject with another background | an edited photo that moves the subject to a new setting
    a copy of the picture with new surroundings | an image with another background and the same subject
    an edited image that gives the subject a new background

blur
    a blurred photo | a picture that has lost its sharpness | an image with smeared details
    a photo with soft and unclear edges | a picture spoiled by blur
compression
    a heavily compressed photo | a picture full of compression artefacts | an image damaged by strong lossy compression
    a photo robbed of its detail by compression
sr_x2
    a photo at half its resolution | a low-resolution picture that needs to be doubled in size
    an image shrunk to one half and enlarged again | a slightly soft photo with half of the pixels in each direction
sr_x4
    a photo at a quarter of its resolution | a low-resolution picture that needs fourfold enlargement
    an image shrunk to one quarter and enlarged again | a very soft photo with a quarter of the pixels in each direction
pixelate
    a pixelated photo | a picture made of coarse square blocks | an image with large visible pixels
    a blocky photo without fine detail
defocus
    an out-of-focus photo | a picture taken with the lens out of focus | a defocused image with disc-shaped blur
    a photo with its focus in the wrong place
gaussian_blur
    a photo softened by Gaussian blur | an evenly blurred picture | a Gaussian-blurred image
    a photo smoothed until its fine detail is gone
oversharpen
    an oversharpened photo | a picture with halos along its edges | an image sharpened far too much
    a harsh photo with exaggerated edges
gaussian_noise
    a photo with Gaussian noise | a picture covered in random colour grain | an image with noise in every pixel
    a photo spoiled by strong Gaussian grain
poisson_noise
    a photo with Poisson noise | a picture with the shot noise of too few photons | an image made grainy by photon noise
    a photo whose grain grows with its brightness
salt_pepper_noise
    a photo with salt-and-pepper noise | a picture sprinkled with black and white dots
    an image with single pixels turned pure black or white | a photo speckled by stray black and white pixels
mosaic
    a raw Bayer mosaic | a picture that has only one colour channel in each pixel | an image before demosaicing
    a dark sensor mosaic of single-colour pixels
contrast_strengthen
    a photo with too much contrast | a picture with crushed shadows and glaring highlights
    an image whose contrast was pushed too far | a harsh photo of extreme darks and lights
contrast_weaken
    a photo with too little contrast | a flat washed-out picture | an image whose contrast is nearly gone
    a dull photo with neither deep shadows nor bright lights
quantization
    a photo reduced to a few tones | a posterised picture with visible colour steps
    an image with too few colour levels | a photo with bands in place of smooth gradients
jpeg
    a photo with JPEG artefacts | a JPEG saved at very low quality | a picture broken up by JPEG blocks
    an image with the blocks and fringes of strong JPEG compression
brighten
    an overexposed photo | a picture that is far too bright | an image brightened until its light parts fade
    a photo with its brightness turned up too high
darken
    a photo with its brightness turned down | a picture that is too dark | an underexposed image
    a darkened photo with heavy shadows
low_light
    a photo taken in very low light | a dim picture whose content is hard to see | an image in near darkness
    a poorly lit photo
saturate_strengthen
    an oversaturated photo | a picture with garish colours | an image whose colours are far too vivid
    a photo with its saturation pushed too high
saturate_weaken
    a photo with faded colours | a desaturated picture | an image whose colours are nearly gone
    a pale photo with too little saturation
gray
    a black-and-white photo | a greyscale picture | an image without any colour | a monochrome photo
color_distortion
    a photo with wrong colours | a picture with swapped or missing colour channels | an image with a strong false tint
    a photo whose colours are badly distorted
inpainting
    a photo crossed by thick strokes | a picture partly covered by black or white lines
    an image with strips of its content hidden | a scribbled-over photo that needs to be filled in
rotate_90
    a photo turned clockwise by 90 degrees | a picture rotated a quarter turn clockwise
    an image tipped on its side by a clockwise turn | a sideways photo that was rotated 90 degrees clockwise
rotate_180
    an upside-down photo | a picture rotated by 180 degrees | an image turned on its head
    a photo rotated by half a turn
rotate_270
    a photo turned clockwise by 270 degrees | a picture rotated a quarter turn counter-clockwise
    an image tipped on its side by a counter-clockwise turn
    a sideways photo that was rotated 90 degrees counter-clockwise
barrel
    a photo with barrel distortion | a picture whose straight lines bulge outwards
    an image that swells in the middle as if seen through a fisheye lens | a photo warped by a wide-angle lens
pincushion
    a photo with pincushion distortion | a picture whose straight lines bend inwards
    an image pinched towards its centre | a photo with its corners pulled outwards
elastic
    an elastically warped photo | a picture with small wavy distortions
    an image rippled as if seen through uneven glass | a photo bent out of shape by random waves
rain
    a photo with rain streaks | a rainy picture | an image covered by falling rain | a photo seen through heavy rain
frost
    a frosted photo | a picture seen through a frosty window | an image partly hidden by ice crystals
    a photo covered with frost
"""


def _parse(text: str) -> dict[str, tuple[str, ...]]:
    """Unindented line: a kind. Indented lines below it: its phrases."""
    phrases: dict[str, tuple[str, ...]] = {}
    kind = ""
    for line in filter(str.strip, text.splitlines()):
        if line.startswith(" "):
            phrases[kind] += tuple(phrase.strip() for phrase in line.split("|"))
        else:
            kind = line.strip()
            assert kind not in phrases, f"two phrase blocks for {kind}"
            phrases[kind] = ()
    return phrases


PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType(_parse(_TEXT))
"""Kind name -> at least four phrases. Text kinds, which are never shown as a cell, have none."""
