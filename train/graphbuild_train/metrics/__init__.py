"""What a generated picture is judged by. Pictures are judged one at a time, so that no figure depends on a batch."""
