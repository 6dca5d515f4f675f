"""Scripts that try ionn on other systems: each makes a Debian of its own in a folder, as root, and works in there."""
