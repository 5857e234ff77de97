"""TIFF files of masks: found, checked and decoded one segment (strip or tile) at a time.

tifffile parses the file and decodes single segments. `mask_file` decides which page is which plane of a mask, `labels`
lists and reads pages of labels of any kind, `plane` says where the segments of a page lie, `metadata` reads names and
pixel sizes, `opening` opens the file. What cannot be a mask is refused with one line that says how to mend it.
"""
