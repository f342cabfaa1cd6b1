"""Task paths: which kinds of picture make a task, in which order, and how often. A path is data, in YAML.

A file holds `paths`, a list of entries, and may hold `types` (weights of task types), `content` (a default) and `kinds`
(custom kinds; conditions on the items of a kind):

    content: {from: caption, of: image}
    types: {editing: 2, sketching: 1}
    kinds: {reference: {where: {quality_assessment.objectConsistency: {">=": 3}}}}
    paths:
      - {name: sketch, type: sketching, cells: [canny, image]}
      - {name: two-edits, type: editing, cells: [image, edit_local:a, edit_local:b], target: edit_local:b}

A cell is a role: a kind, or `kind:name` when an item gives two cells of one stored kind. `target` is a role or a list
of roles, by default the last cell. `type` is by default `custom`, `weight` 1. `content` of the file goes to every path
whose targets include its `of`; an entry may set its own or null. `where` is left to the sampler.

`layout`, `order` and `words` say how the cells are arranged and named, in the file for all paths or in an entry.
`canvas` draws the cells of an entry line by line, and `views` makes a task of several items of one group:

    - {name: try-on, canvas: [[garment, image, agnostic]], target: image}
    - {name: portrait, layout: views, cells: [image], views: [2, 5]}
"""

from graphbuild.tasks.paths.layout import Layout, Places, Words
from graphbuild.tasks.paths.path import DEFAULT_TYPE, Content, PathSet, TaskPath, check_where, role_kind
from graphbuild.tasks.paths.reader import OwnTask, load, load_task, path_set, shipped
from graphbuild.tasks.paths.writer import document_of

__all__ = [
    "DEFAULT_TYPE",
    "Content",
    "Layout",
    "OwnTask",
    "PathSet",
    "Places",
    "TaskPath",
    "Words",
    "check_where",
    "document_of",
    "load",
    "load_task",
    "path_set",
    "role_kind",
    "shipped",
]
