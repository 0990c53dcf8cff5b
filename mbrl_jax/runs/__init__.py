"""The host side: runs training on the machine, shows progress, writes results. Nothing on the device side imports from here."""
