"""An S3 server on loopback that counts what it is asked, and fails as real ones do."""

REGION = "eu-west-1"  # a bucket made in S3's default region is refused by the client's own check
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What a client of the server needs in its environment."""
