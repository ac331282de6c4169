"""wholegrain: one model that learns from whole images, regions and objects at once."""

from wholegrain import torchvision_shim

torchvision_shim.install()
