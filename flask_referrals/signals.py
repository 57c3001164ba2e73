"""The signals. Each is sent with the app as sender, after the data has been committed.

A receiver that raises is logged; it stops neither the other receivers nor the request.
"""

from blinker import NamedSignal, Namespace

_signals = Namespace()

#: A referral was created. Sent with ``referral``; not sent when an existing referral was found.
referral_created: NamedSignal = _signals.signal("referral-created")

#: A click or an action was stored, counted or ignored. Sent with ``response``.
response_recorded: NamedSignal = _signals.signal("response-recorded")

#: A visitor's earlier response was assigned to a user. Sent with ``response``, once for each.
user_linked_to_response: NamedSignal = _signals.signal("user-linked-to-response")
