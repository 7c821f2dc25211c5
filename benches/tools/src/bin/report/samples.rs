//! A small data file for the tests. They count its lines.

pub const SMALL: &str = r#"{
  "cores": 2,
  "rounds": 5,
  "measurements": 180,
  "disturbed_measurements": 3,
  "hit": {
    "connections": 16,
    "pools": [
      {"name": "bare ArrayQueue", "side": "bare_queue",
       "acquire_and_release_ns": 8.5, "times_bare_queue": 1.0},
      {"name": "Pool::acquire().await", "side": "millpond",
       "acquire_and_release_ns": 10.75, "times_bare_queue": 1.26},
      {"name": "<slow> & \"quoted\"", "side": "peer",
       "acquire_and_release_ns": 150.5, "times_bare_queue": 18.1}
    ]
  },
  "threads": {
    "connections": 16,
    "pools": [
      {"name": "bare ArrayQueue", "side": "bare_queue", "points": [
        {"threads": 1, "million_acquires_per_second": 115.0, "times_one_thread": 1.0}]},
      {"name": "Pool::acquire().await", "side": "millpond", "points": [{"threads": 1, "million_acquires_per_second": 95.5, "times_one_thread": 1.0},
        {"threads": 2, "million_acquires_per_second": 190.0, "times_one_thread": 1.98},
        {"threads": 4, "million_acquires_per_second": 185.0, "times_one_thread": 1.93}]},
      {"name": "deadpool", "side": "peer", "points": [
        {"threads": 1, "million_acquires_per_second": 6.61, "times_one_thread": 1.0},
        {"threads": 2, "million_acquires_per_second": 4.33, "times_one_thread": 0.65}]}
    ]
  },
  "waiting": {
    "tasks": 64,
    "connections": 8,
    "workers": 2,
    "without_deadline": [
      {"name": "Millpond", "side": "millpond", "curve": [
        {"percentile": 50, "wait_us": 31.5, "times_millpond": 1.0},
        {"percentile": 99.9, "wait_us": 61.5, "times_millpond": 1.0},
        {"percentile": 99.99, "wait_us": 204.0, "times_millpond": 1.0}]},
      {"name": "deadpool", "side": "peer", "curve": [
        {"percentile": 50, "wait_us": 42.0, "times_millpond": 1.33},
        {"percentile": 99.9, "wait_us": 71.0, "times_millpond": 1.15}]}
    ],
    "with_deadline_of_5_s": [
      {"name": "Millpond", "side": "millpond", "curve": [
        {"percentile": 50, "wait_us": 36.5, "times_millpond": 1.0},
        {"percentile": 99.9, "wait_us": 82.5, "times_millpond": 1.0}]}
    ]
  },
  "allocations": {
    "allocations_per_box": 1,
    "pools": [
      {"name": "Pool::acquire().await", "side": "millpond",
       "allocations_per_acquire_and_release": 0, "allocations_per_wait": 0},
      {"name": "deadpool", "side": "peer",
       "allocations_per_acquire_and_release": 0.5, "allocations_per_wait": 2}
    ]
  }
}
"#;
