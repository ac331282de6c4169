"""Getting published files: the catalogue, the download, the record of what was got, unpacking."""
