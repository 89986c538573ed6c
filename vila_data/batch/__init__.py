"""What a training loop gets: packed batches, their pixels, views for trainers, copies to a device."""
