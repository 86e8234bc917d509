"""What is measured. Each module is a command; freed memory stays with it, as with the commands of Headwater."""

from headwater.allocator import keep_freed_memory

keep_freed_memory()
