"""What a run says about itself: metrics, trackers, records, summaries."""
