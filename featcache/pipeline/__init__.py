"""The whole job in one call, from images to a verified bundle, and the report page that tells of it."""
