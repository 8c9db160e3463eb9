"""What to do about what ssh or a shell says of a host that cannot be reached."""

# What macOS answers to a program that may not use the local network.
PERMISSION = "on macOS the terminal needs System Settings > Privacy & Security > Local Network, on every Mac"
INSTALL = "install afmoe-mlx there, the same version"
AWAKE = "see that it is on, awake and on this network"
# Of which the first that is found counts.
ADVICE = {
    "Permission denied (": "let this user in by a key (ssh-copy-id), for nobody can type a password",
    "Host key verification failed": "run ssh to it once by hand, and accept its key",
    "Could not resolve hostname": 'give its address, or on a Mac its name with .local, as "ssh" in the hosts file',
    "Connection refused": "turn on System Settings > General > Sharing > Remote Login there",
    "timed out": AWAKE,
    "No route to host": f"{AWAKE}; {PERMISSION}",
    "command not found": INSTALL,
    "afmoe-mlx: not found": INSTALL,
    "status 127": INSTALL,
}


def advised(trouble: str) -> str:
    """The same with what to do about it, where that is known."""
    advice = next((advice for found, advice in ADVICE.items() if found in trouble), None)
    return trouble if advice is None or advice in trouble else f"{trouble.rstrip('.')}: {advice}"
