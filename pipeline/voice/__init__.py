"""What is heard: speaker turns of a camera's sound, and to whom of the people seen they belong."""

MICROPHONE_ZONE = "microphone_zone"  # the camera's option: the zone in which its microphone hears people
