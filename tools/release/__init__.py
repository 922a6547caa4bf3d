"""Everything that a release consists of, as files to upload."""

from tools.release.release import release
