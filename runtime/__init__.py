"""The ground floor, shipped to the device: the step contract, engines, the stepping loop, `dc-run`."""
