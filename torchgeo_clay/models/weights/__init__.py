# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Released and own weights: the Hub, the table of names, lazy and strict reading."""
