"""A scene in the browser, on viser: splats, points, cameras with their photos, a flight, a ruler."""
