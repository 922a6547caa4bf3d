"""Image files: read whole or not at all, masks written on their grid."""
