"""The documentation: installed as `llava_ref.docs`, for the server to show."""
