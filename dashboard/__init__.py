"""The Streamlit app. It never touches a weight itself."""
