"""The embedded corpus: a small illustrated world, rendered from a seed.

`config` holds the words and sizes, `shapes` and `kinds` the drawings, `sprites` and `backdrop` the
pixels, `layout` and `scene` the arrangement, `programs` the meaning of an expression,
`expressions` and `captions` the words, `write` the files on disk and `cli` the command.
"""
