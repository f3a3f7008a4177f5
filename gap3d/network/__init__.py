"""How the internet is asked: hosts politely, git, the hub and web servers, every failure a typed one."""
