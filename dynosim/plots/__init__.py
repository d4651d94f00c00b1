"""Figures and HTML reports. Import the module you need: each loads its libraries when called."""
