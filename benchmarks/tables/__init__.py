"""The paper's Tables 1, 3 and S1 and Figures 1 to 4 for trained networks, the published numbers beside them."""
