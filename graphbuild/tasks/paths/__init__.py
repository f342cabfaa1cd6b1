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
"""

from graphbuild.tasks.paths.path import DEFAULT_TYPE, Content, PathSet, TaskPath, check_where, role_kind
from graphbuild.tasks.paths.reader import load, shipped

__all__ = ["DEFAULT_TYPE", "Content", "PathSet", "TaskPath", "check_where", "load", "role_kind", "shipped"]
